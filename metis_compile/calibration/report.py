"""From a place on the path to a `Calibration`, with its commented file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from metis_compile.calibration.candidates import CELLS, OPERANDS_OF, Candidates, Cell, Cells
from metis_compile.calibration.groups import Group
from metis_compile.calibration.measured import Measured
from metis_compile.calibration.result import Calibration, Chosen, Considered, Figures
from metis_compile.calibration.table import figures_of, percent, wanted
from metis_compile.calibration.walk import Walk
from metis_compile.calibration.writing import ChosenRule, text_of
from metis_compile.policy import Policy
from metis_compile.policy.treatment import HIGH


def report(
    walk: Walk,
    at: int,
    *,
    device: str,
    budget: str,
    limit: float,
    moved: int,
    candidates: Mapping[str, Figures],
) -> Calibration:
    """The choice at that place of the walk."""
    choice, effects = walk.path[at], walk.measured
    predicted, measured = walk.predicted(at), walk.figures(at)
    rows = {**candidates, "this file": measured}
    width = max(map(len, rows))
    head = [
        f"Chosen by `metis calibrate` for {device}: {wanted(budget, limit, walk.error)}.",
        "Cost is the predicted time of a step's forward and backward, over that without quantization; the",
        "change of the mean loss, and the relative error of all gradients, were measured on",
        f"{len(effects.high)} batches from the same weights:",
        "",
        f"{'':{width}}  {'cost':>8}  {'loss':>10}  {'gradients':>9}",
        *(
            f"{name:{width}}  {cost:>8}  {loss:>10}  {gradient:>9}"
            for name, (cost, loss, gradient) in ((name, figures_of(row)) for name, row in rows.items())
        ),
        "",
        f"By the sum of its parts, each quantized alone, this file has a cost of {predicted.cost:.3f}x, and errs by",
        f"{percent(predicted.loss)} of the loss and {100 * predicted.gradient:.2f} % of the gradients.",
        "Beside each rule: what its operands do as it has them, and what they would do otherwise.",
    ]
    text = text_of(choice, head, lambda rule: _why(rule, effects))
    return Calibration(
        policy=Policy.from_toml(text, name="calibrated"),
        device=device,
        batches=len(effects.high),
        budget=budget,
        limit=limit,
        error=walk.error,
        loss=effects.loss,
        predicted=predicted,
        measured=measured,
        steps=moved,
        candidates=candidates,
        choices=tuple(_chosen(choice, effects)),
        text=text,
    )


def _why(rule: ChosenRule, effects: Measured) -> Sequence[str]:
    if not rule.decides:
        return ["Everything else: nothing of what was measured."]
    lines = [] if rule.kinds is not None else ["Everything else."]
    chosen = _together(rule, dict.fromkeys(CELLS, rule.recipe), effects)
    lines += [f"{rule.recipe}: {_said(chosen)}"]
    for name in effects.candidates.names:
        whole = effects.candidates.wholes[name]
        if not all(_alike(effects.candidates, cell, whole[cell], rule.recipe) for _, cell in rule.decides):
            lines += [f"as in {name}: {_said(_together(rule, whole, effects))}"]
    return lines


def _alike(candidates: Candidates, cell: Cell, one: str, other: str) -> bool:
    return candidates.treatment(cell, one) == candidates.treatment(cell, other)


def _together(rule: ChosenRule, cells: Cells, effects: Measured) -> Considered:
    """The sum over what a rule decides, were it as in these; 0 of what can't be by it alone."""
    found = [_alone(effects, group, cell, cells[cell]) for group, cell in rule.decides]
    return Considered(
        loss=sum(max(0.0, effect.loss) for effect in found if effect is not None),
        gradient=math.sqrt(sum(effect.gradient**2 for effect in found if effect is not None)),
    )


def _said(effect: Considered) -> str:
    return f"loss {percent(effect.loss)}, gradients {100 * effect.gradient:.2f} %"


def _alone(effects: Measured, group: Group, cell: Cell, name: str) -> Considered | None:
    """What a recipe does to an operand; None where it can't be told from the product's other one."""
    same = next(n for n in effects.candidates.distinct(cell) if _alike(effects.candidates, cell, n, name))
    if same == HIGH:
        return Considered(loss=0.0, gradient=0.0)
    return effects.effects.get((group, frozenset({(cell, same)})))


def _chosen(choice: Mapping[Group, Mapping[Cell, str]], effects: Measured) -> list[Chosen]:
    found = []
    for group, cells in choice.items():
        for gemm, operands in OPERANDS_OF.items():
            for cell in ((gemm, operand) for operand in operands if (gemm, operand) in cells):
                names = [name for name in effects.candidates.distinct(cell) if name != HIGH]
                alone = {name: _alone(effects, group, cell, name) for name in names}
                found.append(
                    Chosen(
                        module=group.kind,
                        blocks=group.blocks,
                        gemm=cell[0],
                        operand=cell[1],
                        recipe=cells[cell],
                        treatment=str(effects.candidates.treatment(cell, cells[cell])),
                        considered={name: effect for name, effect in alone.items() if effect is not None},
                    )
                )
    return found
