"""What each treatment of each group's operands does alone, and what a choice then does by their sum."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from metis_compile.calibration.candidates import OPERANDS_OF, Candidates, Cells
from metis_compile.calibration.groups import Group
from metis_compile.calibration.result import Considered
from metis_compile.options import Config
from metis_compile.passes.graph.sites import Operand, Site
from metis_compile.policy import Policy
from metis_compile.sensitivity.effects import effect_of
from metis_compile.sensitivity.program import Outcome, Program

Part = frozenset[tuple[tuple[str, str], str]]  # ((gemm, operand), recipe)


@dataclass(kw_only=True)
class Measured:
    """Effects by group and part, of which a choice's are the sum: the loss', and the squares of the gradients'."""

    program: Program
    config: Config
    candidates: Candidates
    by: str
    told: Callable[[], None]  # called after each run
    high: Sequence[Outcome] = field(init=False)
    effects: dict[tuple[Group, Part], Considered] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.high = self.program.run_high()
        self.told()

    @property
    def loss(self) -> float:
        return sum(outcome.loss for outcome in self.high) / len(self.high)

    def sites(self, policy: Policy) -> list[Site]:
        """Those that it rewrites."""
        return self.program.sites(replace(self.config, policy=policy))

    def parts(self, group: Group) -> list[Cells]:
        """What is to be measured of a group."""
        return [
            part
            for gemm in OPERANDS_OF
            for part in self.candidates.parts(gemm)
            if all(cell in group.cells for cell in part)
        ]

    def measure(self, group: Group, part: Cells) -> None:
        """One treatment in the modules of a group alone."""

        def wanted(site: Site, operand: Operand) -> bool:
            return group.holds(site, self.by) and (site.gemm, operand.role) in part

        self.effects[group, frozenset(part.items())] = self.whole(self.candidates.everywhere(part), wanted)

    def whole(self, policy: Policy, wanted: Callable[[Site, Operand], bool] = lambda site, operand: True) -> Considered:
        """A policy, in all that is wanted of it."""
        effect = effect_of(self.program.run(replace(self.config, policy=policy), wanted), self.high)
        self.told()
        return Considered(loss=effect.loss / abs(self.loss) if self.loss else effect.loss, gradient=effect.gradient)

    def of(self, group: Group, cells: Cells) -> list[Considered]:
        """What the parts of a choice do, each alone; those that the group has."""
        found = (self.effects.get((group, frozenset(part.items()))) for part in self.candidates.split(cells))
        return [effect for effect in found if effect is not None]

    def sum(self, choice: Mapping[Group, Cells]) -> Considered:
        """Of the whole choice. What lowers the loss by itself is counted as 0: it is chance that one can't add up."""
        effects = [effect for group, cells in choice.items() for effect in self.of(group, cells)]
        gradient = math.sqrt(sum(effect.gradient**2 for effect in effects))
        return Considered(loss=sum(max(0.0, effect.loss) for effect in effects), gradient=gradient)
