"""What is written about measurements is what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median

import pytest

from metis_compile import Policy
from metis_compile.compare.arm import BASELINE
from metis_compile.train.variant import policy_variant

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
COMPARISONS = sorted(path.parent for path in RESULTS.glob("*/compare.json"))
STEPS = sorted(RESULTS.glob("*/step.json"))
TABLES = sorted(RESULTS.glob("*/*.md"))


@pytest.mark.parametrize("table", TABLES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_tables_are_those_in_the_documentation(table: Path) -> None:
    rows = [line for line in table.read_text().splitlines() if line.startswith("|")]
    pages = [page.read_text() for page in (ROOT / "docs").glob("*.md")]
    assert len(rows) > 2
    assert any("\n".join(rows) in page for page in pages)


def test_there_are_tables() -> None:
    assert COMPARISONS


@pytest.mark.parametrize("folder", COMPARISONS, ids=lambda path: path.name)
def test_trials_are_of_the_presets_as_they_are(folder: Path) -> None:
    for file in (folder / "trials").glob("*.json"):
        trial = json.loads(file.read_text())
        policy = trial["arm"].split("+")[0]
        if policy != BASELINE:
            assert trial["policy"] == policy_variant(policy).digest, file.name


@pytest.mark.parametrize("file", STEPS, ids=lambda path: path.parent.name)
def test_ratios_of_steps_follow_from_their_times(file: Path) -> None:
    table = file.with_suffix(".md").read_text()
    for row in json.loads(file.read_text())["rows"]:
        mine, plain = (row["times"][who]["gradients"] for who in ("contender", "plain"))
        ratio = median(a / b for a, b in zip(mine, plain, strict=True))
        assert row["ratio"]["forward_backward"]["median"] == pytest.approx(ratio)
        (line,) = (x for x in table.splitlines() if x.startswith(f"| {row['policy']} | {row['settings']['width']} |"))
        assert f"| {ratio:.2f}x |" in line


@pytest.mark.parametrize("folder", COMPARISONS, ids=lambda path: path.name)
def test_a_comparison_follows_from_its_trials(folder: Path) -> None:
    report = json.loads((folder / "compare.json").read_text())
    for row in report["rows"]:
        gaps = []
        for seed in row["seeds"]:
            mine, high = (
                json.loads((folder / "trials" / f"{arm}-seed{seed}.json").read_text()) for arm in (row["arm"], "high")
            )
            assert mine["settings"] == high["settings"] == report["settings"]
            mine_last, high_last = (sum(trial["losses"][-100:]) for trial in (mine, high))
            gaps.append(100 * (mine_last / high_last - 1))
        assert row["train_gap"]["mean"] == pytest.approx(sum(gaps) / len(gaps), abs=1e-9)


def test_the_gap_by_operand_follows_from_its_losses() -> None:
    folder = RESULTS / "operands"
    report, table = json.loads((folder / "operands.json").read_text()), (folder / "operands.md").read_text()
    high = report["high"]
    for arm in report["arms"]:
        Policy.from_toml(arm["policy"])
        train = 100 * (sum(arm["losses_from_300"][-100:]) / sum(high["losses"][-100:]) - 1)
        validation = 100 * (arm["validation_loss"] / high["validation_loss"] - 1)
        assert f"| {arm['name']} | {arm['what']} | {train:+.2f} % | {validation:+.2f} % |" in table
