"""Two runs beside each other: where their losses and statistics part first.

A number differs where

    |a - b| > threshold (|a| + |b|) / 2      amax and error
    |a - b| > threshold                      shares (underflow, saturation, ...), and scale_spread, in powers of two

or where one of the two is not finite and the other is another. Records are compared at equal step, site, product and
operand, those of a step in the order in which it computes: forward, then backward from the last module on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from metis_compile.monitoring.reading import Run
from metis_compile.monitoring.records import KEY, in_order, numbers_in

__all__ = ["Difference", "Parting", "difference"]

RELATIVE = ("amax", "error")  # fields without a scale of their own
SHOWN = 12  # rows of a table


@dataclass(frozen=True, kw_only=True)
class Parting:
    """One number that differs."""

    step: int
    site: str
    gemm: str
    operand: str
    side: str | None
    call: int
    rank: int
    field: str
    a: float
    b: float


@dataclass(frozen=True, kw_only=True)
class Difference:
    """What two runs differ in. first: all that differs in the first step in which anything does."""

    a: str
    b: str
    threshold: float
    loss_threshold: float
    common_steps: tuple[int, ...]  # that both have records of
    compared: int  # records that both have
    differing: int  # of them, those in which a number differs
    first: tuple[Parting, ...]
    largest: tuple[Parting, ...]  # of each field, where it differs most
    common_losses: int
    loss: tuple[int, float, float] | None  # the first step whose losses differ, and both
    only_a: tuple[str, ...]  # sites that have records in one run alone
    only_b: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; what is not finite is a text."""
        values = asdict(self)
        if self.loss is not None:
            values["loss"] = dict(zip(("step", "a", "b"), self.loss, strict=True))
        plain: dict[str, Any] = _plain(values)
        return plain

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        yield from self._sentences()
        if self.first:
            yield _table(f"step {self.first[0].step}, the first that differs", self.first[:SHOWN])
            if len(self.first) > SHOWN:
                yield f"and {len(self.first) - SHOWN} more in that step"
            yield _table("where each field differs most", self.largest)

    def _sentences(self) -> Iterator[str]:
        yield f"A: {self.a}"
        yield f"B: {self.b}"
        if self.common_losses:
            within = f"{self.loss_threshold:g} of their size"
            if self.loss is None:
                yield f"losses: within {within} in all {self.common_losses} steps"
            else:
                step, a, b = self.loss
                yield f"losses: part by more than {within} at step {step}: {a:.4f} in A, {b:.4f} in B"
        if self.common_steps:
            steps = f"{len(self.common_steps)} step{'s' if len(self.common_steps) != 1 else ''}"
            differ = f"{self.differing} differ (threshold {self.threshold:g})"
            yield f"statistics: {self.compared} records in {steps} compared, {differ}"
        if self.first:
            first = self.first[0]
            what = first.operand if first.operand == "product" else f"{first.operand} ({first.side})"
            yield (
                f"they part first at step {first.step}: {first.site or '(model)'}, {first.gemm}, {what}: "
                f"{first.field} {_number(first.a)} in A, {_number(first.b)} in B"
            )
        for name, sites in (("A", self.only_a), ("B", self.only_b)):
            if sites:
                more = f" and {len(sites) - SHOWN} more" if len(sites) > SHOWN else ""
                yield f"only {name} has records of: {', '.join(sites[:SHOWN])}{more}"


def difference(a: Run, b: Run, *, threshold: float = 0.1, loss_threshold: float = 0.01) -> Difference:
    """What two runs differ in. Raises ValueError for a negative threshold, and where they have nothing in common."""
    for name, value in (("threshold", threshold), ("loss_threshold", loss_threshold)):
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must be a number of at least 0, got {value!r}")
    steps = tuple(sorted(a.records.keys() & b.records.keys()))
    loss_steps = sorted(a.losses.keys() & b.losses.keys())
    if not steps and not loss_steps:
        raise ValueError(f"{a.name} and {b.name} have no step in common: {_has(a)}, and {_has(b)}")
    first: list[Parting] = []
    largest: dict[str, Parting] = {}
    compared = differing = 0
    for step in steps:
        found = []
        for record, other in _pairs(a.records[step], b.records[step]):
            compared += 1
            parted = list(_partings(record, other, threshold))
            differing += bool(parted)
            found += parted
        first = first or found
        for each in found:
            if each.field not in largest or _size(each) > _size(largest[each.field]):
                largest[each.field] = each
    return Difference(
        a=a.name,
        b=b.name,
        threshold=threshold,
        loss_threshold=loss_threshold,
        common_steps=steps,
        compared=compared,
        differing=differing,
        first=tuple(first),
        largest=tuple(largest.values()),
        common_losses=len(loss_steps),
        loss=next(
            (
                (step, a.losses[step], b.losses[step])
                for step in loss_steps
                if _differs("error", a.losses[step], b.losses[step], loss_threshold)
            ),
            None,
        ),
        only_a=_only(a, b),
        only_b=_only(b, a),
    )


def _pairs(a: dict[Any, Any], b: dict[Any, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Records of the same operand of one step, in the order of the model."""
    common = in_order([record for key, record in a.items() if key in b])
    places = {site: i for i, site in enumerate(dict.fromkeys(record["site"] for record in common))}
    backward = sorted((r for r in common if r["gemm"] != "fprop"), key=lambda r: -places[r["site"]])
    for record in [*(r for r in common if r["gemm"] == "fprop"), *backward]:
        yield record, b[tuple(record.get(name) for name in KEY)]


def _partings(a: dict[str, Any], b: dict[str, Any], threshold: float) -> Iterator[Parting]:
    ours, theirs = numbers_in(a), numbers_in(b)
    for name in (name for name in ours if name in theirs):
        if _differs(name, ours[name], theirs[name], threshold):
            about = {key: a.get(key) for key in ("step", "site", "gemm", "operand", "side", "call", "rank")}
            yield Parting(**about, field=name, a=ours[name], b=theirs[name])  # type: ignore[arg-type]


def _differs(name: str, a: float, b: float, threshold: float) -> bool:
    if not (math.isfinite(a) and math.isfinite(b)):
        return not (a == b or (a != a and b != b))
    scale = (abs(a) + abs(b)) / 2 if name.rpartition(".")[2] in RELATIVE else 1.0
    return abs(a - b) > threshold * scale


def _size(each: Parting) -> float:
    size = abs(each.a - each.b)
    if each.field.rpartition(".")[2] in RELATIVE and size:
        size /= (abs(each.a) + abs(each.b)) / 2
    return size if math.isfinite(size) else math.inf


def _only(a: Run, b: Run) -> tuple[str, ...]:
    """Sites that `a` has records of and `b` has none of; of no meaning where one has none at all."""
    if not (a.records and b.records):
        return ()
    ours, theirs = ({r["site"]: None for step in run.records.values() for r in step.values()} for run in (a, b))
    return tuple(site or "(model)" for site in ours if site not in theirs)


def _has(run: Run) -> str:
    if run.records:
        return f"one has records of steps {', '.join(map(str, sorted(run.records)[:4]))}, ..."
    return f"one has losses of {len(run.losses)} steps"


def _table(title: str, partings: tuple[Parting, ...]) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left")
    for name in ("step", "site", "gemm", "operand", "field"):
        table.add_column(name, overflow="fold")
    for name in ("A", "B"):
        table.add_column(name, justify="right")
    for each in partings:
        site = f"{each.site or '(model)'}{f' call {each.call}' if each.call else ''}"
        site += f" rank {each.rank}" if each.rank else ""
        operand = each.operand if each.side is None else f"{each.operand} ({each.side})"
        table.add_row(str(each.step), site, each.gemm, operand, each.field, _number(each.a), _number(each.b))
    return table


def _number(value: float) -> str:
    return f"{value:.4g}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
