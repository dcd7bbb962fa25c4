"""What an operand may be given: the treatments of a few presets, or none; and what of it fits together in a module."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from metis_compile.cost_model.kernels import unit_of
from metis_compile.policy import KINDS, Policy, Query, Recipe, Rule, Treatment, presets
from metis_compile.policy.treatment import HIGH, HIGH_RECIPE
from metis_compile.spelling import did_you_mean

Cell = tuple[str, str]  # gemm, operand
Cells = Mapping[Cell, str]  # -> the recipe that it is treated by

OPERANDS_OF = {"fprop": ("activation", "weight"), "dgrad": ("gradient", "weight"), "wgrad": ("gradient", "activation")}
CELLS = tuple((gemm, operand) for gemm, operands in OPERANDS_OF.items() for operand in operands)
MOST_WAYS = 512  # to treat a module: the cost of each is predicted
_LARGE = 4096  # a linear's sizes, where a preset asks for them


class CalibrationError(ValueError):
    """Candidates that are none, a budget that nothing meets, nothing to quantize; the message is one line."""


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """What some presets do to the linears of a model, apart from rules for some of its blocks.

    Raises CalibrationError for a name that is no preset's, for none that quantizes, and for too many together.
    """

    wholes: Mapping[str, Cells]  # the preset's name -> what it does everywhere; "high" first
    recipes: Mapping[str, Recipe]  # by their names, "high" among them

    @classmethod
    def of(cls, names: Sequence[str]) -> Candidates:
        names = (names,) if isinstance(names, str) else tuple(names)
        wholes: dict[str, Cells] = {HIGH: dict.fromkeys(CELLS, HIGH)}
        recipes = {HIGH: HIGH_RECIPE}
        for name in names:
            if name not in presets():
                raise CalibrationError(
                    f"metis: there is no candidate {name!r}; candidates are presets, {', '.join(presets())}"
                    f"{did_you_mean(name, presets())}"
                )
            policy = Policy.load(name)
            wholes[name] = {cell: policy.decide(_linear(cell)).recipe for cell in CELLS}
            recipes |= {recipe: policy.recipe(recipe) for recipe in wholes[name].values()}
        if len(wholes) == 1:
            raise CalibrationError("metis: there must be a candidate besides high, got none")
        candidates = cls(wholes=wholes, recipes=recipes)
        ways = len(candidates.ways())
        if ways > MOST_WAYS:
            raise CalibrationError(
                f"metis: {len(wholes) - 1} candidates make {ways} ways to treat a module, more than {MOST_WAYS}: give "
                "fewer at a time"
            )
        return candidates

    @property
    def names(self) -> tuple[str, ...]:
        """Without "high"."""
        return tuple(self.wholes)[1:]

    def treatment(self, cell: Cell, recipe: str) -> Treatment:
        return self.recipes[recipe].treatment(cell[1])

    def distinct(self, cell: Cell) -> list[str]:
        """Recipes that treat an operand differently, "high" first; of several that treat it alike, the first."""
        first: dict[Treatment, str] = {}
        for whole in self.wholes.values():
            first.setdefault(self.treatment(cell, whole[cell]), whole[cell])
        return list(first.values())

    def ways(self) -> list[Cells]:
        """Every choice for the operands of a module's three products."""
        return [
            {cell: name for pair in pairs for cell, name in pair.items()}
            for pairs in product(*(list(self._pairs(gemm)) for gemm in OPERANDS_OF))
        ]

    def parts(self, gemm: str) -> list[Cells]:
        """What is measured by itself: each operand in each treatment; both together where a transform ties them."""
        found: list[Cells] = []
        for pair in self._pairs(gemm):
            found += [part for part in self.split(pair) if part not in found]
        return found

    def split(self, cells: Cells) -> list[Cells]:
        """The parts of a choice, without what is left high."""
        found: list[Cells] = []
        for gemm in OPERANDS_OF:
            pair = {cell: name for cell, name in cells.items() if cell[0] == gemm and name != HIGH}
            if any(self.treatment(cell, name).hadamard for cell, name in pair.items()):
                found.append(pair)
            else:
                found += [{cell: name} for cell, name in pair.items()]
        return found

    def _pairs(self, gemm: str) -> Iterator[Cells]:
        """Both operands high, or both in formats that are multiplied as they are packed."""
        a, b = ((gemm, operand) for operand in OPERANDS_OF[gemm])
        for names in product(self.distinct(a), self.distinct(b)):
            one, other = self.treatment(a, names[0]), self.treatment(b, names[1])
            if HIGH in (one.format, other.format):
                fits = one.format == other.format
            else:
                fits = unit_of(one.format, other.format) != "bfloat16" and one.hadamard == other.hadamard
            if fits:
                yield {a: names[0], b: names[1]}

    def everywhere(self, cells: Cells) -> Policy:
        """The policy that treats all modules alike."""
        rules = [Rule(gemm=(gemm,), operand=(operand,), recipe=name) for (gemm, operand), name in cells.items()]
        recipes = tuple(recipe for name, recipe in self.recipes.items() if name != HIGH)
        return Policy(recipes=recipes, rules=(*left_high(), *rules), name="calibration")


def left_high() -> tuple[Rule, ...]:
    """What every quantizing preset leaves high."""
    kinds = tuple(kind for kind in KINDS if kind != "attention")
    return Rule(kind=kinds, recipe=HIGH), Rule(has_weight=False, recipe=HIGH)


def _linear(cell: Cell) -> Query:
    """An operand of a large linear outside of any block."""
    gemm, operand = cell
    return Query(
        module="",
        block=None,
        op="linear",
        gemm=gemm,
        operand=operand,
        dtype="bfloat16",
        has_weight=True,
        m=_LARGE,
        n=_LARGE,
        k=_LARGE,
    )
