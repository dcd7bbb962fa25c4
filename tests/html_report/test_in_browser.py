"""A page in headless Chromium: it fits a phone and a desktop, in light and in dark, and runs and fetches nothing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest

from metis_compile.html_report import (
    Block,
    Chart,
    Code,
    Facts,
    Figure,
    Fold,
    HeatMap,
    Line,
    Page,
    Section,
    Shares,
    Table,
    html,
)

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH"),
]
LONG = "model.layers.{0..31}.self_attention.query_key_value_projection"
# Run in the page for the test alone; what it finds goes to where --dump-dom shows it.
MEASURE = """<script>
const shown = (name) => [...document.querySelectorAll(name)].filter((e) => e.getClientRects().length);
const off = [...document.querySelectorAll("body *")].filter((e) => !e.closest(".scroll, pre, svg"))
  .filter((e) => e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.tagName + "." + e.className);
const colour = (name, what) => getComputedStyle(document.querySelector(name))[what];
document.body.dataset.found = JSON.stringify({
  width: innerWidth, scrolls: document.documentElement.scrollWidth, off: off,
  charts: shown("figure svg[role=img]").length, boxes: shown(".scroll").filter((e) => !e.closest("details")).length,
  paper: colour("body", "backgroundColor"), ink: colour("body", "color"),
  line: colour("svg .line", "stroke"), tick: colour("svg text.tick", "fill"),
  resources: performance.getEntriesByType("resource").length,
});
</script></body>"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    line = Line(label=LONG, x=range(100), y=[1 / (1 + i) for i in range(100)])
    columns = [f"{gemm} {operand}" for gemm in ("fprop", "dgrad", "wgrad") for operand in ("weight", "activation")]
    blocks: list[Block] = [
        Chart(title="one", x_label="step", lines=[line, Line(label="b", x=[0, 99], y=[0.0, 1.0], colour=1)]),
        Chart(title="two", x_label="step", lines=[line], half=True),
        Chart(title="three", x_label="step", lines=[line], half=True),
        HeatMap(title="four", rows=[LONG, "b"], columns=columns, values=[[1.0, -2.0, 3.0] * 2] * 2),
        Table(headings=[LONG] * 8, rows=[[LONG] * 8] * 100),
        Shares(title="five", parts=[("nvfp4", 1.0), ("high", 2.0)]),
        Code(title=LONG * 3, text=LONG * 9),
        Facts(facts=[("text", "/a/long/path" * 20)]),
        Fold(title=LONG * 3, blocks=[Table(headings=["a"], rows=[[LONG * 5]])]),
    ]
    figures = [Figure(label="a gap", value="+0.26 %", note=LONG) for _ in range(3)]
    page = Page(title=LONG, lead=LONG, figures=figures, sections=[Section(id="a", title=LONG, blocks=blocks)])
    path = tmp_path_factory.mktemp("pages") / "page.html"
    path.write_text(html(page).replace("</body>", MEASURE), encoding="utf-8")
    return path


def opened(file: Path, width: int, dark: bool, folder: Path) -> dict[str, Any]:
    """What MEASURE found, in a frame of that width: a window of Chromium is never narrower than 500 pixels."""
    assert CHROMIUM is not None
    frame = (
        f'<iframe srcdoc="{escape(file.read_text(encoding="utf-8"))}" style="width:{width}px; height:900px"></iframe>'
    )
    copied = "document.body.dataset.found = document.querySelector('iframe').contentDocument.body.dataset.found"
    outer = folder / "outer.html"
    outer.write_text(f'<!DOCTYPE html><meta charset="utf-8"><body onload="{copied}">{frame}</body>', encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--user-data-dir={folder / 'profile'}"]
    flags += ["--window-size=1400,900", f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    done = subprocess.run([CHROMIUM, *flags, "--dump-dom", outer.as_uri()], capture_output=True, text=True, check=True)
    (found,) = re.findall(r'<body[^>]* data-found="([^"]*)"', done.stdout)
    return dict(json.loads(unescape(found)))


def brightness(colour: str) -> float:
    red, green, blue = (int(n) for n in re.findall(r"\d+", colour)[:3])
    return (0.2126 * red + 0.7152 * green + 0.0722 * blue) / 255


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_and_can_be_read(width: int, dark: bool, file: Path, tmp_path: Path) -> None:
    found = opened(file, width, dark, tmp_path)
    assert found["width"] == width
    assert found["off"] == []
    assert found["scrolls"] <= width
    assert found["charts"] == 3  # one drawing of each
    assert found["boxes"] == 2
    assert found["resources"] == 0
    paper = brightness(found["paper"])
    assert (paper < 0.2) == dark
    assert abs(brightness(found["ink"]) - paper) > 0.7
    assert all(abs(brightness(found[name]) - paper) > 0.3 for name in ("line", "tick"))
