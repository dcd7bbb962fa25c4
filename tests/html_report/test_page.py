"""Any page: it parses, needs nothing from elsewhere, and no text in it is taken for markup."""

from __future__ import annotations

import math

import pytest
from parsed_html import Parsed

from metis_compile.html_report import (
    Block,
    Chart,
    Code,
    Facts,
    Figure,
    Fold,
    HeatMap,
    Legend,
    Line,
    Mark,
    Page,
    Section,
    Shares,
    Table,
    Text,
    html,
)

EVIL = '</code></pre><script>alert(\'metis\')</script><b onclick="x">&amp; "quoted"'


def page(*blocks: Block, title: str = "a run", left_out: tuple[str, ...] = ()) -> Page:
    section = Section(id="all", title=title, lead=title, blocks=blocks)
    return Page(
        title=title,
        lead=title,
        figures=[Figure(label=title, value=title, note=title)],
        sections=[section],
        left_out=left_out,
    )


def every_block(text: str) -> list[Block]:
    line = Line(label=text, x=[0, 1, 2], y=[1.0, math.nan, 2.0], low=[0.0, 1.0, 1.0], high=[2.0, 2.0, 3.0])
    other = Line(label=f"{text} 2", x=[0, 1], y=[1.0, 2.0], faint=True)
    return [
        Chart(title=text, x_label=text, y_label=text, lines=[line, other], zero=True, note=text),
        Chart(title=text, x_label=text, marks=[Mark(label=text, x=1.0, y=2.0, y_range=(1.0, 3.0))], half=True),
        HeatMap(title=text, rows=[text, "b"], columns=[text, "d"], values=[[1.0, -2.0], [None, 0.0]], unit=text),
        Table(title=text, headings=[text, "n"], rows=[(text, "1")], note=text),
        Shares(title=text, parts=[(text, 1.0), ("high", 3.0)]),
        Legend(lines=[line]),
        Text(text=text),
        Code(title=text, text=text),
        Facts(facts=[(text, text)]),
        Fold(title=text, blocks=[Text(text=text)]),
    ]


def test_it_parses_and_needs_nothing_from_elsewhere() -> None:
    parsed = Parsed(html(page(*every_block("metis"), left_out=("not here",))))
    parsed.assert_needs_nothing()
    assert parsed.sections == ["all"]
    assert "not here" in parsed.text
    assert sum(tag == "svg" for tag, _ in parsed.tags) >= 4  # two charts, for wide and narrow pages


def test_no_text_is_taken_for_markup() -> None:
    written = html(page(*every_block(EVIL), title=EVIL, left_out=(EVIL,)))
    assert "<script" not in written
    parsed = Parsed(written)
    parsed.assert_needs_nothing()
    texts = [*parsed.texts, *(value or "" for _, attributes in parsed.tags for value in attributes.values())]
    assert sum(EVIL in text for text in texts) >= len(every_block(EVIL))


def test_both_colour_schemes_have_every_colour() -> None:
    written = html(page())
    light, dark = (
        {name.strip() for name in part.split("}")[0].replace(";", "\n").split("\n") if "#" in name}
        for part in (written.split(":root {")[1], written.split(":root {")[2])
    )
    names = [{entry.split(":")[0] for entry in scheme} for scheme in (light, dark)]
    assert names[0] == names[1]
    assert {f"--c{i}" for i in range(8)} <= names[0]
    assert not light & dark


def test_a_heat_map_shows_its_values_and_their_signs() -> None:
    found = HeatMap(title="t", rows=["a", "b"], columns=["x", "y"], values=[[1.0, -2.0], [None, math.nan]])
    assert [found.strength(value) for value in (1.0, -2.0, 0.0)] == [50, 100, 0]
    assert [found.text(value) for value in (-0.004, 0.0, -0.006, -10.0)] == ["0.00", "0.00", "-0.01", "-10.00"]
    parsed = Parsed(html(page(found)))
    cells = [attributes for tag, attributes in parsed.tags if tag == "td"]
    assert [cell.get("class") for cell in cells] == ["hot", "cold", None, "hot"]
    assert parsed.cells[1:] == [["a", "1.00", "-2.00"], ["b", "", "nan"]]


def test_shares_add_up() -> None:
    found = Shares(title="t", parts=[("nvfp4", 3.0), ("high", 1.0)]).percents
    assert [(name, percent) for name, percent, _ in found] == [("nvfp4", 75.0), ("high", 25.0)]
    assert found[1][2] == "high"
    assert Shares(title="t", parts=[]).percents == []


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_legend_is_there_for_several_curves(count: int) -> None:
    lines = [Line(label=f"line {i}", x=[0, 1], y=[0.0, 1.0]) for i in range(count)]
    parsed = Parsed(html(page(Chart(title="t", x_label="x", lines=lines))))
    assert ("line 0" in parsed.text) == (count > 1)
