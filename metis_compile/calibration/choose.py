"""The cheapest policy within an error budget, or the best within a cost budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

from metis_compile.calibration.candidates import CalibrationError, Candidates, Cells
from metis_compile.calibration.costs import Costs
from metis_compile.calibration.groups import BY, Group, groups_of
from metis_compile.calibration.measured import Measured
from metis_compile.calibration.report import report
from metis_compile.calibration.result import Calibration, Considered, Figures
from metis_compile.calibration.search import Way, frontier, path
from metis_compile.calibration.walk import Walk
from metis_compile.cost_model import Device, find_device
from metis_compile.inspection.prediction import Prediction
from metis_compile.options import read_options
from metis_compile.policy.treatment import HIGH
from metis_compile.sensitivity.effects import kind_of
from metis_compile.sensitivity.program import BlameError, program
from metis_compile.spelling import did_you_mean

ERRORS = ("loss", "gradient")


def calibrate(
    loss: Callable[..., Any],
    batches: Sequence[Any],
    *,
    device: str | Device = "b200",
    budget_cost: float | None = None,
    budget_error: float | None = None,
    error: Literal["loss", "gradient"] = "loss",
    candidates: Sequence[str] = ("mxfp8", "nvfp4", "best"),
    by: Literal["kind", "depth"] = "kind",
    cost_of: tuple[Callable[..., Any], Sequence[Any]] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Calibration:
    """Chooses a treatment for each operand of each kind of layer, by what it does to the loss and what it costs.

    loss and batches: as those of `blame`; the weights should be trained to some degree. device: what the cost is
    predicted for, as in `explain`. Give one budget. budget_cost: a step's time over that without quantization, such as
    0.9; the policy that errs least within it is chosen. budget_error: of what `error` names; the cheapest policy within
    it is chosen. error: "loss", the relative change of the mean loss (0.001 is 0.1 %), or "gradient", ||g - g0|| /
    ||g0|| of all parameters' gradients together. candidates: presets, whose recipes are what an operand may be given;
    it may always be left high. by: "kind" treats all layers alike whose names differ by a number; "depth" looks at the
    first and the last quarter of the blocks apart from those between. cost_of: another loss and a batch of its, to
    predict the cost of: of a larger model whose layers have the same names but for numbers, maybe on the meta device
    (then the loss must be an nn.Module). It needs by="kind". progress: called with how many of how many runs
    are done; the last few, of whole policies, are added as they are needed.

    Raises CalibrationError, a ValueError, for a candidate that is none, a budget that is no number above 0 or that
    nothing meets, and where nothing can be quantized; BlameError as `blame` does; DeviceError.
    """
    for name, value, known in (("by", by, BY), ("error", error, ERRORS)):
        if value not in known:
            raise ValueError(f"metis: {name} must be {' or '.join(known)}, got {value!r}")
    budget, limit = _budget(budget_cost, budget_error)
    choices = Candidates.of(candidates)
    found_device = find_device(device)
    policies = {name: choices.everywhere(whole) for name, whole in choices.wholes.items()}
    config, _ = read_options({"policy": policies[choices.names[-1]]}, None)
    if cost_of is not None and by != "kind":
        raise ValueError('metis: cost_of needs by="kind": the depths of two models are not the same')
    batches = [batch if isinstance(batch, (tuple, list)) else (batch,) for batch in batches]

    cost_of = (loss, batches[0] if batches else ()) if cost_of is None else cost_of
    done, total = 0, 0

    def told() -> None:
        nonlocal done, total
        done += 1
        total = max(total, done)
        if progress is not None:
            progress(done, total)

    with program(loss, batches, config) as of_loss:
        measured = Measured(program=of_loss, config=config, candidates=choices, by=by, told=told)
        if not math.isfinite(measured.loss):
            raise BlameError(f"metis: the loss must be finite in high precision, got {measured.loss}")
        sites = [site for name in choices.names for site in measured.sites(policies[name])]
        groups = groups_of(sites, by)
        if not groups:
            raise CalibrationError(f"metis: {', '.join(choices.names)} quantize nothing of this model")
        parts = [(group, part) for group in groups for part in measured.parts(group)]
        ways = choices.ways()
        total = 1 + len(parts) + len(ways) + len(policies) - 1

        costs = Costs(*cost_of, config, found_device, alike=by == "kind")
        _check_kinds(groups, costs)
        predictions = []
        for way in ways:
            predictions.append(costs.of(choices.everywhere(way)))
            told()
        for group, part in parts:
            measured.measure(group, part)
        frontiers = _frontiers(groups, ways, predictions, measured, error)
        steps = path(frontiers)
        walk = Walk(
            path=[dict(zip(groups, (way.what for way in step), strict=True)) for step in steps],
            estimates=[_unchanged(groups, predictions[0], by) + sum(way.cost for way in step) for step in steps],
            measured=measured,
            costs=costs,
            error=error,
        )
        at, moved = walk.within_cost(limit) if budget == "cost" else walk.within_error(limit)
        wholes = {}
        for name, policy in policies.items():
            effect = Considered(loss=0.0, gradient=0.0) if name == HIGH else measured.whole(policy)
            wholes[name] = Figures(cost=costs.of(policy).ratio, loss=effect.loss, gradient=effect.gradient)
        return report(
            walk,
            at,
            device=found_device.name,
            budget=budget,
            limit=limit,
            moved=moved,
            candidates=wholes,
        )


def _frontiers(
    groups: Sequence[Group],
    ways: Sequence[Cells],
    predictions: Sequence[Prediction],
    measured: Measured,
    error: str,
) -> list[list[Way[Cells]]]:
    """Of each group. Costs are shares of the unquantized step, errors changes of the loss, or gradients' squared."""
    seconds = [_by_group(groups, prediction, measured.by) for prediction in predictions]
    found = []
    for group in groups:
        of_group = []
        for i, way in enumerate(ways):
            cells: Cells = {cell: name for cell, name in way.items() if cell in group.cells}
            effect = measured.sum({group: cells})
            square = effect.gradient**2
            cost = seconds[i][group] / predictions[i].plain_seconds
            by_loss = error == "loss"
            of_group.append(Way(what=cells, cost=cost, error=effect.loss if by_loss else square, tie=square))
        found.append(frontier(of_group))
    return found


def _by_group(groups: Sequence[Group], prediction: Prediction, by: str) -> dict[Group, float]:
    """Seconds of the products of each."""
    of_kind = {group.kind: group for group in groups if by == "kind"}
    of_module = {module: group for group in groups for module in group.modules}
    found = dict.fromkeys(groups, 0.0)
    for site in prediction.sites:
        group = of_module.get(site.site.module) or of_kind.get(kind_of(site.site.module))
        if group is not None:
            found[group] += site.total
    return found


def _check_kinds(groups: Sequence[Group], costs: Costs) -> None:
    """Raises CalibrationError where what the cost is predicted of has no such layers."""
    there = {kind_of(module) for module in costs.modules}
    for group in groups:
        if group.kind not in there:
            raise CalibrationError(
                f"metis: cost_of has no layers called {group.kind!r}, which the loss has"
                f"{did_you_mean(group.kind, there)}"
            )


def _unchanged(groups: Sequence[Group], high: Prediction, by: str) -> float:
    """The share of an unquantized step that no choice is about."""
    return (high.seconds - sum(_by_group(groups, high, by).values())) / high.plain_seconds


def _budget(cost: float | None, error: float | None) -> tuple[str, float]:
    if (cost is None) == (error is None):
        raise CalibrationError("metis: give one budget, budget_cost or budget_error")
    name, value = ("cost", cost) if cost is not None else ("error", error)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (0 < value < math.inf):
        raise CalibrationError(f"metis: budget_{name} must be a number above 0, got {value!r}")
    return name, float(value)
