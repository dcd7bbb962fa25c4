"""What a page is made of. Every text is escaped where it is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

__all__ = [
    "Block",
    "Chart",
    "Code",
    "Facts",
    "Figure",
    "Fold",
    "HeatMap",
    "Legend",
    "Line",
    "Mark",
    "Page",
    "Section",
    "Shares",
    "Table",
    "Text",
]

Scale = Literal["linear", "log", "symlog"]  # symlog: linear from -1 to 1, logarithmic beyond


@dataclass(frozen=True, kw_only=True)
class Line:
    """A curve. A point that is not finite is a gap in it."""

    label: str  # "" for one that the legend leaves out
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()  # a band around it, at each x
    high: Sequence[float] = ()
    colour: int = 0  # which of the page's eight
    dash: int = 0  # 0 solid, 1 dashed, 2 dotted
    faint: bool = False  # thin and pale, behind the others
    broad: bool = False  # broad and pale, behind the others: a reference that another curve may cover


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A point with a name, and how far it may be off each way."""

    label: str
    x: float
    y: float
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    colour: int = 0


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Curves or points over an axis."""

    kind: ClassVar[str] = "chart"
    title: str
    x_label: str
    y_label: str = ""
    lines: Sequence[Line] = ()
    marks: Sequence[Mark] = ()
    y_scale: Scale = "linear"
    x_scale: Scale = "linear"
    zero: bool = False  # a line at y = 0, which is then always shown
    half: bool = False  # two stand beside each other where there is room
    short: bool = False
    has_legend: bool = True
    note: str = ""

    @property
    def legend(self) -> list[Line]:
        """One line for each label, where there are several."""
        found = list({line.label: line for line in self.lines if line.label}.values())
        return found if len(found) > 1 and self.has_legend else []


@dataclass(frozen=True, kw_only=True)
class HeatMap:
    """Numbers in a grid; None is an empty cell."""

    kind: ClassVar[str] = "heat_map"
    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float | None]]
    unit: str = ""
    digits: int = 2
    note: str = ""

    def text(self, value: float) -> str:
        """A value to read; no minus before a zero."""
        text = f"{value:.{self.digits}f}"
        return text.removeprefix("-") if not text.strip("-0.") else text

    def strength(self, value: float) -> int:
        """How strong a cell's colour is, in percent of the largest value either way."""
        known = [abs(v) for row in self.values for v in row if v is not None]
        largest = max((v for v in known if v < float("inf")), default=0.0)
        return round(100 * min(1.0, abs(value) / largest)) if largest and value == value else 0


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text; the first column is text, the others are numbers unless `texts` names them."""

    kind: ClassVar[str] = "table"
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    texts: Sequence[int] = (0,)  # columns that are aligned to the left
    wraps: Sequence[int] = ()  # those that may take several lines
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Shares:
    """Parts of a whole as a bar. parts: name -> amount."""

    kind: ClassVar[str] = "shares"
    title: str
    parts: Sequence[tuple[str, float]]

    @property
    def percents(self) -> list[tuple[str, float, str]]:
        """(name, percent, its colour: "high" has none of the page's)."""
        total = sum(amount for _, amount in self.parts) or 1.0
        colours = iter(range(10**6))
        return [
            (name, 100 * amount / total, "high" if name == "high" else f"c{next(colours) % 8}")
            for name, amount in self.parts
        ]


@dataclass(frozen=True, kw_only=True)
class Legend:
    """What the curves of several charts below it are."""

    kind: ClassVar[str] = "legend"
    lines: Sequence[Line]


@dataclass(frozen=True, kw_only=True)
class Text:
    """A paragraph."""

    kind: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True, kw_only=True)
class Code:
    """Text as it is: a policy file, a command."""

    kind: ClassVar[str] = "code"
    text: str
    title: str = ""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Names and what they are."""

    kind: ClassVar[str] = "facts"
    facts: Sequence[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Fold:
    """Blocks that are shown when they are asked for."""

    kind: ClassVar[str] = "fold"
    title: str
    blocks: Sequence[Block]


Block = Chart | HeatMap | Legend | Table | Shares | Text | Code | Facts | Fold


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page, with a link to it at its top."""

    id: str  # a word
    title: str
    lead: str = ""  # what it answers, a sentence or two
    blocks: Sequence[Block] = ()


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A number that matters most."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Page:
    """A report. left_out: what is not in it, and how to have it."""

    title: str
    lead: str
    figures: Sequence[Figure] = ()
    sections: Sequence[Section] = ()
    left_out: Sequence[str] = ()
