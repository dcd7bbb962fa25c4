"""What an operand may be given: the treatments of a few presets, or none; and what of it fits together in a module."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from metis_compile.cost_model.kernels import unit_of
from metis_compile.policy import KINDS, Policy, Recipe, Rule, Treatment, presets
from metis_compile.policy.treatment import HIGH, HIGH_RECIPE
from metis_compile.spelling import did_you_mean

Cell = tuple[str, str]  # gemm, operand
Cells = Mapping[Cell, str]  # -> the candidate that it is treated by

OPERANDS_OF = {"fprop": ("activation", "weight"), "dgrad": ("gradient", "weight"), "wgrad": ("gradient", "activation")}
MOST_WAYS = 512  # to treat a module: the cost of each is predicted


class CalibrationError(ValueError):
    """Candidates that are none, a budget that nothing meets, nothing to quantize; the message is one line."""


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Recipes by name, "high" first.

    Raises CalibrationError for a name that no preset has a recipe of, for none, and for too many together.
    """

    recipes: Mapping[str, Recipe]

    @classmethod
    def of(cls, names: Sequence[str]) -> Candidates:
        known = [name for name in presets() if name == HIGH or _recipe(name) is not None]
        if isinstance(names, str):
            names = (names,)
        found = {HIGH: HIGH_RECIPE}
        for name in names:
            if name not in known:
                raise CalibrationError(
                    f"metis: there is no candidate {name!r}; candidates are the recipes of presets, "
                    f"{', '.join(known)}{did_you_mean(name, known)}"
                )
            recipe = _recipe(name)
            if recipe is not None:
                found[name] = recipe
        if len(found) == 1:
            raise CalibrationError("metis: there must be a candidate besides high, got none")
        candidates = cls(recipes=found)
        ways = len(candidates.ways())
        if ways > MOST_WAYS:
            raise CalibrationError(
                f"metis: {len(found) - 1} candidates make {ways} ways to treat a module, more than {MOST_WAYS}: give "
                "fewer at a time"
            )
        return candidates

    @property
    def names(self) -> tuple[str, ...]:
        """Without "high"."""
        return tuple(self.recipes)[1:]

    def treatment(self, cell: Cell, name: str) -> Treatment:
        return self.recipes[name].treatment(cell[1])

    def distinct(self, operand: str) -> list[str]:
        """Those that treat an operand differently; of several that treat it alike, the first."""
        first: dict[Treatment, str] = {}
        for name, recipe in self.recipes.items():
            first.setdefault(recipe.treatment(operand), name)
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
        for names in product(self.distinct(a[1]), self.distinct(b[1])):
            one, other = self.treatment(a, names[0]), self.treatment(b, names[1])
            if HIGH in (one.format, other.format):
                fits = one.format == other.format
            else:
                fits = unit_of(one.format, other.format) != "bfloat16" and one.hadamard == other.hadamard
            if fits:
                yield {a: names[0], b: names[1]}

    def whole(self, name: str) -> Cells:
        """Every operand by the same candidate."""
        return {(gemm, operand): name for gemm, operands in OPERANDS_OF.items() for operand in operands}

    def everywhere(self, cells: Cells) -> Policy:
        """The policy that treats all modules alike."""
        rules = [Rule(gemm=(gemm,), operand=(operand,), recipe=name) for (gemm, operand), name in cells.items()]
        recipes = tuple(recipe for name, recipe in self.recipes.items() if name != HIGH)
        return Policy(recipes=recipes, rules=(*left_high(), *rules), name="calibration")


def left_high() -> tuple[Rule, ...]:
    """What every quantizing preset leaves high."""
    kinds = tuple(kind for kind in KINDS if kind != "attention")
    return Rule(kind=kinds, recipe=HIGH), Rule(has_weight=False, recipe=HIGH)


def _recipe(preset: str) -> Recipe | None:
    """A preset's recipe of its own name."""
    return next((r for r in Policy.load(preset).recipes if r.name == preset), None)
