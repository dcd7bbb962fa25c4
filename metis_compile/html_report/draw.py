"""A chart as SVG text. Its colours are the page's, so that one drawing serves light and dark."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from xml.etree.ElementTree import Element, SubElement, tostring

from metis_compile.html_report.axis import Axis
from metis_compile.html_report.blocks import Chart, Line, Mark

__all__ = ["drawings"]

WIDE, HALF, NARROW = (896, 340), (436, 240), (344, 240)  # pixels: beside the text, two beside each other, on a phone
SHORT = 200  # the height of a chart that is short
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 10, 36  # around the plot
DETAIL = 2.0  # points of a curve that are closer along x, in pixels, are drawn as one


def drawings(chart: Chart) -> list[tuple[str, str]]:
    """(class, SVG): the chart for a wide and for a narrow page; the page shows one of them."""
    width, height = HALF if chart.half else WIDE
    return [
        ("wide", _svg(chart, width, min(height, SHORT) if chart.short else height)),
        ("narrow", _svg(chart, NARROW[0], min(NARROW[1], SHORT) if chart.short else NARROW[1])),
    ]


def _svg(chart: Chart, width: int, height: int) -> str:
    root = Element("svg", viewBox=f"0 0 {width} {height}", width=str(width), height=str(height), role="img")
    root.set("aria-label", f"{chart.title}: {chart.y_label or chart.title} over {chart.x_label}")
    marks_right = RIGHT if not chart.marks else 20
    x = Axis.over(list(_xs(chart)), LEFT, width - marks_right, chart.x_scale, 0.06 if chart.marks else 0.0)
    y = Axis.over(list(_ys(chart)), height - BOTTOM, TOP, chart.y_scale, 0.05)
    _grid(root, chart, x, y, width, height)
    for line in chart.lines:
        _band(root, line, x, y)
    for line in sorted(chart.lines, key=lambda line: not (line.faint or line.broad)):
        _curve(root, line, x, y)
    for mark in chart.marks:
        _mark(root, mark, x, y, width)
    return tostring(root, encoding="unicode")


def _xs(chart: Chart) -> Iterator[float]:
    for line in chart.lines:
        yield from line.x
    for mark in chart.marks:
        yield from (mark.x, *(mark.x_range or ()))


def _ys(chart: Chart) -> Iterator[float]:
    for line in chart.lines:
        yield from (*line.y, *line.low, *line.high)
    for mark in chart.marks:
        yield from (mark.y, *(mark.y_range or ()))
    if chart.zero:
        yield 0.0


def _grid(root: Element, chart: Chart, x: Axis, y: Axis, width: int, height: int) -> None:
    for place, label in y.ticks(6):
        _line(root, "grid", x.start, place, x.end, place)
        _text(root, "tick", x.start - 7, place + 4, label, "end")
    for place, label in x.ticks(4 if width < 600 else 8):
        _line(root, "tick", place, y.start, place, y.start + 4)
        _text(root, "tick", place, y.start + 17, label, "middle")
    zero = y.place(0.0) if chart.zero else None
    if zero is not None:
        _line(root, "zero", x.start, zero, x.end, zero)
    _line(root, "axis", x.start, y.start, x.end, y.start)
    _text(root, "label", x.end, height - 3, chart.x_label, "end")


def _curve(root: Element, line: Line, x: Axis, y: Axis) -> None:
    style = f"line c{line.colour % 8} dash{line.dash % 3}"
    style += " faint" if line.faint else " broad" if line.broad else ""
    for points in _runs(line.x, line.y, x, y):
        if len(points) == 1:
            SubElement(
                root,
                "circle",
                {"class": f"dot c{line.colour % 8}", "cx": _n(points[0][0]), "cy": _n(points[0][1]), "r": "3"},
            )
        else:
            SubElement(root, "path", {"class": style, "d": _path(points)})


def _band(root: Element, line: Line, x: Axis, y: Axis) -> None:
    if not line.low:
        return
    lows, highs = list(_runs(line.x, line.low, x, y)), list(_runs(line.x, line.high, x, y))
    for low, high in zip(lows, highs, strict=False):
        if len(low) > 1:
            SubElement(root, "path", {"class": f"band c{line.colour % 8}", "d": _path([*high, *reversed(low)]) + "Z"})


def _mark(root: Element, mark: Mark, x: Axis, y: Axis, width: int) -> None:
    across, up = x.place(mark.x), y.place(mark.y)
    if across is None or up is None:
        return
    colour = f"c{mark.colour % 8}"
    for low, high in [mark.x_range] if mark.x_range else []:
        ends = x.place(low), x.place(high)
        if None not in ends:
            _line(root, f"whisker {colour}", ends[0] or 0, up, ends[1] or 0, up)
    for low, high in [mark.y_range] if mark.y_range else []:
        ends = y.place(low), y.place(high)
        if None not in ends:
            _line(root, f"whisker {colour}", across, ends[0] or 0, across, ends[1] or 0)
    SubElement(root, "circle", {"class": f"dot {colour}", "cx": _n(across), "cy": _n(up), "r": "4"})
    before = across + 7.2 * len(mark.label) + 8 > width
    _text(root, "name", across + (-7 if before else 7), up - 6, mark.label, "end" if before else "start")


def _runs(xs: Sequence[float], ys: Sequence[float], x: Axis, y: Axis) -> Iterator[list[tuple[float, float]]]:
    """The points of a curve, cut where one has no place; those of one pixel as their lowest and highest."""
    run: list[tuple[float, float]] = []
    for across, up in ((x.place(a), y.place(b)) for a, b in zip(xs, ys, strict=True)):
        if across is not None and up is not None:
            run.append((across, up))
        elif run:
            yield _thinned(run)
            run = []
    if run:
        yield _thinned(run)


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    by_pixel: dict[int, list[tuple[float, float]]] = {}
    for point in points:
        by_pixel.setdefault(math.floor(point[0] / DETAIL), []).append(point)
    found = []
    for near in by_pixel.values():
        extremes = {min(near, key=lambda p: p[1]), max(near, key=lambda p: p[1])}
        found += [point for point in near if point in extremes] if len(near) > 2 else near
    return found


def _path(points: Sequence[tuple[float, float]]) -> str:
    """Relative to the point before, which is shorter; rounded so that errors do not add up."""
    at = [(round(10 * a), round(10 * b)) for a, b in points]
    steps = [(c - a, d - b) for (a, b), (c, d) in pairwise(at)]
    return f"M{_n(at[0][0] / 10)} {_n(at[0][1] / 10)}l" + " ".join(f"{_n(a / 10)} {_n(b / 10)}" for a, b in steps)


def _line(root: Element, style: str, x1: float, y1: float, x2: float, y2: float) -> None:
    SubElement(root, "line", {"class": style, "x1": _n(x1), "y1": _n(y1), "x2": _n(x2), "y2": _n(y2)})


def _text(root: Element, style: str, x: float, y: float, text: str, anchor: str) -> None:
    element = SubElement(root, "text", {"class": style, "x": _n(x), "y": _n(y), "text-anchor": anchor})
    element.text = text


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
