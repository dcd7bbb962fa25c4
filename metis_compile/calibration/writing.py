"""A choice as a policy file: few rules, by kind of layer, and beside each what was measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from metis_compile.calibration.candidates import OPERANDS_OF, Cell, Cells, left_high
from metis_compile.calibration.groups import Group, by_kind, globs_of
from metis_compile.policy import OPERANDS

Choice: TypeAlias = Mapping[Group, Cells]
Piece = tuple[tuple[str, ...] | None, tuple[str, ...] | None]  # gemms, operands; None for all that there are


@dataclass(frozen=True, kw_only=True)
class ChosenRule:
    """A rule, and what it decides: cells of groups."""

    kinds: tuple[str, ...] | None  # None: of everything that is left
    blocks: str | None
    piece: Piece
    recipe: str
    decides: tuple[tuple[Group, Cell], ...]


def rules_of(choice: Choice) -> list[ChosenRule]:
    """The rules of a choice, the first that matches decides: the last is for everything else."""
    usual = {kind: dict(choice[groups[0]]) for kind, groups in by_kind(choice).items()}
    found: list[ChosenRule] = []
    for blocks in {group.blocks: None for group in choice if group.blocks is not None}:
        here = {g.kind: g for g in choice if g.blocks == blocks}
        for name in _names(choice.values()):
            cells = {
                kind: [c for c in _ordered(g.cells) if choice[g][c] == name and usual[kind].get(c) != name]
                for kind, g in here.items()
            }
            found += _rules(cells, {k: _ordered(g.cells) for k, g in here.items()}, name, blocks, here)
    first = {kind: groups[0] for kind, groups in by_kind(choice).items()}
    return [*found, *min((_with_default(usual, first, name) for name in _by_number(usual)), key=len)]


def _with_default(usual: Mapping[str, Cells], groups: Mapping[str, Group], default: str) -> list[ChosenRule]:
    everything = {kind: _ordered(cells) for kind, cells in usual.items()}
    found: list[ChosenRule] = []
    for name in _names(usual.values()):
        if name != default:
            cells = {kind: [c for c in everything[kind] if usual[kind][c] == name] for kind in usual}
            found += _rules(cells, everything, name, None, groups)
    rest = tuple((groups[k], c) for k, cells in everything.items() for c in cells if usual[k][c] == default)
    return [*found, ChosenRule(kinds=None, blocks=None, piece=(None, None), recipe=default, decides=rest)]


def _rules(
    cells: Mapping[str, Sequence[Cell]],
    everything: Mapping[str, Sequence[Cell]],
    name: str,
    blocks: str | None,
    groups: Mapping[str, Group],
) -> list[ChosenRule]:
    """One rule for all kinds whose operands the recipe is for in the same way."""
    together: dict[Piece, dict[str, list[Cell]]] = {}
    for kind, some in cells.items():
        for piece, of_piece in _pieces(some, everything[kind]).items():
            together.setdefault(piece, {})[kind] = of_piece
    return [
        ChosenRule(
            kinds=tuple(kinds),
            blocks=blocks,
            piece=piece,
            recipe=name,
            decides=tuple((groups[kind], cell) for kind, some in kinds.items() for cell in some),
        )
        for piece, kinds in together.items()
    ]


def _pieces(cells: Sequence[Cell], everything: Sequence[Cell]) -> dict[Piece, list[Cell]]:
    """Cells of a module as few products of gemms and operands."""
    by_operands: dict[tuple[str, ...] | None, list[str]] = {}
    for gemm in OPERANDS_OF:
        here = tuple(o for o in OPERANDS if (gemm, o) in cells)
        if here:
            there = tuple(o for o in OPERANDS if (gemm, o) in everything)
            by_operands.setdefault(None if here == there else here, []).append(gemm)
    gemms = {gemm for gemm, _ in everything}
    return {
        (None if set(some) == gemms and operands is None else tuple(some), operands): [
            c for c in cells if c[0] in some and (operands is None or c[1] in operands)
        ]
        for operands, some in by_operands.items()
    }


def text_of(choice: Choice, head: Sequence[str], why: Callable[[ChosenRule], Sequence[str]]) -> str:
    """The file. head: lines about all of it. why: lines about a rule."""
    globs = globs_of(list(choice))
    lines = [*(f"# {line}".rstrip() for line in head), ""]
    lines += ["# What every preset leaves high: routers, heads, adapters, and products of two activations."]
    for rule in left_high():
        lines += ["[[rule]]"]
        lines += [f"kind = {_list(rule.kind)}"] if rule.kind is not None else ["has_weight = false"]
        lines += [f'recipe = "{rule.recipe}"', ""]
    for chosen in rules_of(choice):
        lines += [f"# {line}" for line in why(chosen)]
        lines += ["[[rule]]"]
        if chosen.kinds is not None and set(chosen.kinds) != {g.kind for g in choice}:
            lines += [f"module = {_list([glob for kind in chosen.kinds for glob in globs[kind]])}"]
        gemms, operands = chosen.piece
        lines += [f'blocks = "{chosen.blocks}"'] if chosen.blocks is not None else []
        lines += [f"gemm = {_list(gemms)}"] if gemms is not None else []
        lines += [f"operand = {_list(operands)}"] if operands is not None else []
        lines += [f'recipe = "{chosen.recipe}"', ""]
    return "\n".join(lines)


def _list(texts: Sequence[str]) -> str:
    quoted = [f'"{text}"' for text in texts]
    return quoted[0] if len(quoted) == 1 else f"[{', '.join(quoted)}]"


def _ordered(cells: Iterable[Cell]) -> list[Cell]:
    there = set(cells)
    return [(gemm, o) for gemm, operands in OPERANDS_OF.items() for o in operands if (gemm, o) in there]


def _names(choice: Iterable[Cells]) -> list[str]:
    return list(dict.fromkeys(name for cells in choice for name in cells.values()))


def _by_number(usual: Mapping[str, Cells]) -> list[str]:
    """The names, most used first."""
    return [name for name, _ in Counter(name for cells in usual.values() for name in cells.values()).most_common()]
