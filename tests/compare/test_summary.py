import json
import math

import pytest

from metis_compile.compare.cost import Cost
from metis_compile.compare.record import Record
from metis_compile.compare.summary import from_json, markdown, summarize, to_json


def record(arm: str, seed: int, losses: list[float | None], validation: float | None, saved: int = 100) -> Record:
    return Record(
        arm=arm,
        seed=seed,
        settings={},
        text="",
        policy="",
        losses=losses,
        validation_loss=validation,
        saved_bytes=saved,
        step_seconds=None,
        compile_seconds=1.0,
        threads=1,
        versions={},
    )


HIGH = [record("high", 0, [9.0, 2.0, 2.0], 2.0), record("high", 1, [9.0, 3.0, 5.0], 4.0)]


def test_gaps_are_to_the_same_seed() -> None:
    mine = [record("nvfp4", 0, [9.0, 2.0, 2.2], 2.1, 50), record("nvfp4", 1, [9.0, 4.0, 4.4], 4.0, 50)]
    (row,) = summarize(mine, HIGH, {}, last=2)
    assert row.train_gap.mean == pytest.approx(5.0)
    assert row.train_gap.deviation == pytest.approx(0.0, abs=1e-9)
    assert row.validation_gap.mean == pytest.approx(2.5)
    assert row.validation_gap.deviation == pytest.approx(5 / math.sqrt(2))
    assert (row.seeds, row.saved_ratio, row.cost) == ([0, 1], 0.5, None)
    assert row.train_loss == pytest.approx((2.1 + 4.2) / 2)


def test_a_seed_without_its_baseline_is_left_out() -> None:
    mine = [record("nvfp4", seed, [2.0], 2.0) for seed in (1, 7)]
    (row,) = summarize(mine, HIGH, {}, last=1)
    assert row.seeds == [1]
    assert row.train_gap.deviation is None
    assert summarize(mine[1:], HIGH, {}, last=1) == []


def test_a_diverged_run_has_no_number() -> None:
    rows = summarize([record("nvfp4", 0, [2.0, None], None)], HIGH, {}, last=1)
    (plain,) = to_json(rows)
    assert plain["train_gap"]["mean"] is None
    assert plain["validation_loss"] is None
    assert "diverged" in markdown(rows, "")


def test_rows_from_their_numbers() -> None:
    cost = Cost(
        flops_ratio=1.05,
        step_ratio=1.25,
        step_ratio_quartiles=(1.2, 1.3),
        step_seconds=1.0,
        baseline_seconds=0.8,
        threads=2,
    )
    mine = [record("nvfp4", 0, [2.1], 2.0), record("nvfp4", 1, [5.0], 4.0), record("best", 0, [None], None)]
    rows = summarize([*HIGH, *mine], HIGH, {"nvfp4": cost}, 1)
    again = from_json(json.loads(json.dumps(to_json(rows), allow_nan=False)))
    assert to_json(again) == json.loads(json.dumps(to_json(rows)))
    assert markdown(again, "") == markdown(rows, "")


def test_the_table() -> None:
    cost = Cost(
        flops_ratio=1.05,
        step_ratio=1.25,
        step_ratio_quartiles=(1.2, 1.3),
        step_seconds=1.0,
        baseline_seconds=0.8,
        threads=2,
    )
    text = markdown(summarize([*HIGH, record("nvfp4", 0, [2.1], 2.0)], HIGH, {"nvfp4": cost}, 1), "Caption.")
    assert text.splitlines()[0] == "Caption."
    assert text.splitlines()[-1] == "| `nvfp4` | 1 | +5.00 % | 2.0000 | +0.00 % | 1.25x | 1.00x | +5.0 % |"
