"""What a step costs against what it loses."""

from dataclasses import replace

from metis_compile.compare.cost import Cost
from metis_compile.compare.plot import cost_figure
from metis_compile.compare.summary import Row, Spread

COST = Cost(
    flops_ratio=1.1,
    step_ratio=0.8,
    step_ratio_quartiles=(0.7, 0.9),
    step_seconds=0.8,
    baseline_seconds=1.0,
    threads=1,
)


def row(arm: str, gap: float, cost: Cost | None) -> Row:
    return Row(
        arm=arm,
        seeds=[0],
        train_loss=1.0,
        train_gap=Spread(mean=gap, deviation=None, values=[gap]),
        validation_loss=1.0,
        validation_gap=Spread(mean=gap, deviation=None, values=[gap]),
        saved_ratio=1.0,
        cost=cost,
    )


def test_a_point_for_each_arm_whose_step_was_measured() -> None:
    rows = [
        row("high", 0.0, COST),
        row("nvfp4", 1.2, COST),
        row("best", 0.2, replace(COST, step_ratio=0.85)),
        row("averis", 1.0, None),
        row("mxfp4", float("nan"), COST),
    ]
    (axes,) = cost_figure(rows).axes
    drawn = {text.get_text(): text.xy for text in axes.texts}
    assert drawn["nvfp4"] == (0.8, 1.2)
    assert drawn["best"] == (0.85, 0.2)
    assert set(drawn) == {"nvfp4", "best", "mxfp4"}
