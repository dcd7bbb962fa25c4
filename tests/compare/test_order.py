import json

import pytest

from metis_compile.compare.order import cells, chance_cells, headings, markdown, neighbours, ordered, to_json
from metis_compile.compare.record import Record
from metis_compile.compare.summary import Row, summarize

GAPS = {
    "worse": [3.0, 3.1, 2.9, 3.0, 3.05],
    "high": [0.0] * 5,
    "nvfp4": [1.0, 1.2, 0.8, 1.1, 0.9],
    "best": [0.98, 1.22, 0.79, 1.08, 0.91],
}
REDRAWN = {"nvfp4+redrawn": [1.1, 1.1, 0.9, 1.0, 1.0]}


def rows(gaps: dict[str, list[float]]) -> list[Row]:
    """Rows of arms that are these percents behind, in training and validation alike."""
    records = [
        Record(
            arm=arm,
            seed=seed,
            settings={},
            text="",
            policy="",
            losses=[2 * (1 + value / 100)],
            validation_loss=2 * (1 + value / 100),
            saved_bytes=1,
            step_seconds=None,
            compile_seconds=1.0,
            threads=1,
            versions={},
        )
        for arm, values in gaps.items()
        for seed, value in enumerate(values)
    ]
    return summarize(records, [r for r in records if r.arm == "high"], {}, last=1)


def test_policies_by_their_gap_and_each_against_the_one_before() -> None:
    found = rows(GAPS)
    assert [row.arm for row in ordered(found)] == ["high", "best", "nvfp4", "worse"]
    tests = neighbours(found)
    assert [(d.arm, d.base) for d in tests] == [("best", "high"), ("nvfp4", "best"), ("worse", "nvfp4")]
    assert [d.significant for d in tests] == [True, False, True]
    assert tests[1].mean == pytest.approx(0.004)
    assert all(d.corrected is not None and d.p is not None and d.corrected >= d.p for d in tests)
    lines = cells(found)
    assert [line[7] for line in lines] == ["", "behind", "tie", "behind"]
    assert headings(found)[-3:] == ["less worse", "p", ""], "the first one named"
    assert [line[-1] for line in lines] == ["", "ahead", "ahead", ""]
    assert lines[1][8].startswith("-2.01 ± ")
    # 1.0 +- 2.776 * 0.1581 / sqrt(5)
    assert lines[2][:5] == ["nvfp4", "5", "5", "+1.00 % ± 0.20", "+1.00 % ± 0.20"]


def test_a_seed_more_or_less_changes_what_is_compared_and_not_the_order() -> None:
    found = rows(GAPS | {"worse": [3.0, 3.1]})
    assert [d.seeds for d in neighbours(found)] == [5, 5, 2]
    alone = rows(GAPS | {"worse": [3.0]})
    assert cells(alone)[-1] == ["worse", "1", "1", "+3.00 %", "+3.00 %", "+2.00", "-", "not tested", "-", "-", ""]


def test_chance_is_told_apart() -> None:
    found = rows(GAPS | REDRAWN)
    assert [row.arm for row in ordered(found)] == ["high", "best", "nvfp4", "worse"]
    (line,) = chance_cells(found)
    # 0.1, -0.1, 0.1, -0.1, 0.1: a mean of 0.02, and 0.1 / sqrt(2) for each of the two
    assert line[:2] == ["nvfp4+redrawn less nvfp4", "5"]
    assert line[2].startswith("+0.02 ± ")
    assert line[4] == "0.07"
    assert "Chance" not in markdown(rows({"high": [0.0]}), "")


def test_runs_with_other_random_numbers_are_averaged_seed_by_seed() -> None:
    found = rows(GAPS | {"nvfp4+redrawn": [1.1, 1.1, 0.9, 1.0]})
    nvfp4 = ordered(found)[2]
    assert nvfp4.validation_gap.values == pytest.approx([1.05, 1.15, 0.85, 1.05, 0.9])
    assert cells(found)[2][:3] == ["nvfp4", "5", "9"]
    unpaired = rows(GAPS | {"high+perturbed": [9.0] * 5, "high+reparametrized": [0.5] * 5})
    assert [row.arm for row in ordered(unpaired)] == ["high", "high+reparametrized", "best", "nvfp4", "worse"]
    assert ordered(unpaired)[0].validation_gap.mean == 0


def test_a_diverged_policy_comes_last() -> None:
    found = rows(GAPS | {"best": [1.0, float("nan"), 1.0, 1.0, 1.0]})
    assert [row.arm for row in ordered(found)] == ["high", "nvfp4", "worse", "best"]
    assert cells(found)[-1][4] == "diverged"
    assert cells(found)[-1][7] == "not tested"


def test_the_pages_and_the_numbers() -> None:
    text = markdown(rows(GAPS), "a title")
    assert text.startswith("a title; by validation gap")
    assert "| `nvfp4` | 5 | 5 | +1.00 % ± 0.20 | +1.00 % ± 0.20 | +0.00 ± 0.02 |" in text
    plain = json.loads(json.dumps(to_json(rows(GAPS)), allow_nan=False))
    assert plain["order"] == ["high", "best", "nvfp4", "worse"]
    assert [n["significant"] for n in plain["neighbours"]] == [True, False, True]
    assert [(n["arm"], n["base"], n["significant"]) for n in plain["from_first"]] == [
        ("best", "worse", True),
        ("nvfp4", "worse", True),
    ]


def test_two_policies_are_each_others_neighbours_and_a_single_one_is_tested_against_full_precision() -> None:
    one = rows({"high": [0.0, 0.0], "nvfp4": [1.0, 1.1]})
    assert len(headings(one)) == len(cells(one)[0]) == 8
    assert "less" not in markdown(one, "")
