"""Charts: curves are where their values are, and what has no value has no place."""

from __future__ import annotations

import math
import re
from itertools import accumulate
from xml.etree.ElementTree import Element, fromstring

import pytest

from metis_compile.html_report.axis import Axis
from metis_compile.html_report.blocks import Chart, Line, Mark, Scale
from metis_compile.html_report.draw import drawings


def wide(**changes: object) -> Element:
    return fromstring(dict(drawings(Chart(title="t", x_label="step", **changes)))["wide"])  # type: ignore[arg-type]


def points(path: str) -> list[tuple[float, float]]:
    numbers = [float(n) for n in re.findall(r"-?\d+\.?\d*", path)]
    xs, ys = accumulate(numbers[0::2]), accumulate(numbers[1::2])
    return list(zip(xs, ys, strict=True))


def paths(root: Element, style: str) -> list[list[tuple[float, float]]]:
    return [points(e.get("d", "")) for e in root.iter("path") if style in e.get("class", "").split()]


@pytest.mark.parametrize(
    ("scale", "values", "labels"),
    [
        ("linear", [0.0, 10.0], ["0", "2", "4", "6", "8", "10"]),
        ("log", [0.01, 100.0], ["0.01", "0.1", "1", "10", "100"]),
        ("symlog", [-1.0, 20.0], ["-1", "0", "1", "2", "5", "10", "20"]),
        ("log", [2.1, 2.9], ["2.2", "2.4", "2.6", "2.8"]),
    ],
)
def test_ticks_are_round_and_at_their_values(scale: Scale, values: list[float], labels: list[str]) -> None:
    axis = Axis.over(values, 0, 100, scale)
    ticks = axis.ticks(6)
    assert [label for _, label in ticks] == labels
    assert [place for place, _ in ticks] == pytest.approx([axis.place(float(label)) for label in labels])
    assert axis.place(values[0]) == 0
    assert axis.place(values[1]) == 100


def test_an_axis_of_nothing_and_of_one_value() -> None:
    assert Axis.over([], 0, 100, "linear").place(0.0) == 50
    assert Axis.over([3.0, math.nan], 0, 100, "linear").place(3.0) == 50
    assert Axis.over([0.0, 10.0], 0, 100, "log").place(0.0) is None
    assert Axis.over([1.0], 0, 100, "linear").place(math.inf) is None


def test_a_curve_goes_through_its_values() -> None:
    root = wide(lines=[Line(label="", x=[0, 50, 100], y=[0.0, 10.0, 5.0])])
    ((a, b, c),) = paths(root, "line")
    assert b[0] == pytest.approx((a[0] + c[0]) / 2, abs=0.11)
    assert c[1] == pytest.approx((a[1] + b[1]) / 2, abs=0.11)
    assert b[1] < c[1] < a[1]  # up is a smaller y


def test_a_curve_is_cut_where_it_is_not_finite() -> None:
    root = wide(lines=[Line(label="", x=range(6), y=[1.0, 2.0, math.nan, 3.0, math.inf, 4.0])])
    assert [len(path) for path in paths(root, "line")] == [2]
    assert len(list(root.iter("circle"))) == 2  # single points


def test_many_points_keep_their_extremes() -> None:
    values = [0.0] * 100_000
    values[54_321], values[70_000] = 7.0, -7.0
    root = wide(lines=[Line(label="", x=range(len(values)), y=values)])
    (path,) = paths(root, "line")
    assert len(path) < 2000
    ys = [y for _, y in path]
    assert max(ys) - ys[0] == pytest.approx(ys[0] - min(ys), abs=0.2)
    assert max(ys) - ys[0] > 100


def test_a_band_encloses_its_curve() -> None:
    line = Line(label="", x=[0, 1], y=[1.0, 2.0], low=[0.5, 1.0], high=[1.5, 3.0])
    ((a, b, c, d),) = paths(wide(lines=[line]), "band")
    ((start, end),) = paths(wide(lines=[line]), "line")
    assert a[1] < start[1] < d[1]
    assert b[1] < end[1] < c[1]


def test_zero_is_in_sight_where_it_is_asked_for() -> None:
    lines = [Line(label="", x=[0, 1], y=[5.0, 6.0])]
    assert [e for e in wide(lines=lines, zero=True).iter("line") if e.get("class") == "zero"]
    assert not [e for e in wide(lines=lines).iter("line") if e.get("class") == "zero"]


def test_a_mark_has_its_name_inside_of_the_chart() -> None:
    marks = [Mark(label="a-long-name-of-a-policy", x=x, y=1.0, x_range=(x - 0.1, x + 0.1)) for x in (0.0, 1.0)]
    left, right = (e for e in wide(marks=marks).iter("text") if e.get("class") == "name")
    assert left.get("text-anchor") == "start"
    assert right.get("text-anchor") == "end"
    assert len([e for e in wide(marks=marks).iter("line") if "whisker" in e.get("class", "")]) == 2
