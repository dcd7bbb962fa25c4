"""Layers that are treated alike: those of a kind, or of a kind and a part of the depth; and globs that mean them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

from metis_compile.calibration.candidates import Cell
from metis_compile.passes.graph.sites import Site
from metis_compile.policy.depth import in_blocks
from metis_compile.policy.globs import compile_glob
from metis_compile.sensitivity.effects import kind_of

BY = ("kind", "depth")
ENDS = ("first 25%", "last 25%")  # of the blocks, apart from those between


@dataclass(frozen=True, kw_only=True)
class Group:
    """kind: the name with a star for each number. blocks: one of ENDS, or None for all blocks, or those between."""

    kind: str
    blocks: str | None
    modules: frozenset[str] = field(repr=False)
    cells: frozenset[Cell] = field(repr=False)  # the operands of its products

    def holds(self, site: Site, by: str) -> bool:
        return _key(site, by) == (self.kind, self.blocks)

    def __str__(self) -> str:
        return (self.kind or "<model>") + ("" if self.blocks is None else f" ({self.blocks})")


def groups_of(sites: Iterable[Site], by: str) -> list[Group]:
    """Groups of the products that a policy may quantize, in their order."""
    modules: dict[tuple[str, str | None], dict[str, None]] = {}
    cells: dict[tuple[str, str | None], dict[Cell, None]] = {}
    for site in sites:
        key = _key(site, by)
        modules.setdefault(key, {})[site.module] = None
        cells.setdefault(key, {}).update(((site.gemm, operand.role), None) for operand in site.operands)
    return [
        Group(kind=kind, blocks=blocks, modules=frozenset(modules[kind, blocks]), cells=frozenset(cells[kind, blocks]))
        for kind, blocks in modules
    ]


def _key(site: Site, by: str) -> tuple[str, str | None]:
    blocks = None
    if by == "depth" and site.block is not None:
        index, count = site.block
        blocks = next((end for end in ENDS if in_blocks(end, index, count)), None)
    return kind_of(site.module), blocks


def globs_of(groups: Sequence[Group]) -> dict[str, tuple[str, ...]]:
    """For each kind, globs that match its modules and no others of these groups: with a star, if that does."""
    modules: dict[str, set[str]] = {}
    for group in groups:
        modules.setdefault(group.kind, set()).update(group.modules)
    everything = set().union(*modules.values())
    return {kind: _globs(kind, names, everything) for kind, names in modules.items()}


def _globs(kind: str, names: set[str], everything: set[str]) -> tuple[str, ...]:
    for glob in (_under_any(kind, everything), kind, _with_numbers(kind, names)):
        if glob and {name for name in everything if compile_glob(glob).fullmatch(name)} == names:
            return (glob,)
    return tuple(sorted(names))


def _under_any(kind: str, everything: set[str]) -> str:
    """With a star for the module that holds them all: it may only compute the loss, and not be there in training."""
    first, _, rest = kind.partition(".")
    held_by_one = all(name.startswith(f"{first}.") for name in everything) and not rest.startswith("*")
    return f"*.{rest}" if held_by_one and rest else ""


def _with_numbers(kind: str, names: set[str]) -> str:
    """The kind with the numbers that there are in place of each star; "" where the names are not all of these."""
    pattern = re.compile(r"(?<![^.])\d+(?![^.])")
    numbers = [sorted(set(map(int, column))) for column in zip(*(pattern.findall(name) for name in names), strict=True)]
    parts = kind.split("*")
    if len(parts) != len(numbers) + 1 or len(list(product(*numbers))) != len(names):
        return ""
    text = parts[0]
    for some, part in zip(numbers, parts[1:], strict=True):
        text += _numbers(some) + part
    return text


def _numbers(some: Sequence[int]) -> str:
    if len(some) == 1:
        return str(some[0])
    if some[-1] - some[0] == len(some) - 1:
        return f"{{{some[0]}..{some[-1]}}}"
    return "{" + ",".join(map(str, some)) + "}"


def by_kind(groups: Iterable[Group]) -> Mapping[str, list[Group]]:
    """Groups of each kind: those of all blocks, or between the ends, come first."""
    found: dict[str, list[Group]] = {}
    for group in groups:
        found.setdefault(group.kind, []).append(group)
    return {kind: sorted(some, key=lambda g: g.blocks or "") for kind, some in found.items()}
