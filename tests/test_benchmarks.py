"""What is written about measurements is what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COMPARISONS = sorted(path.parent for path in (ROOT / "benchmarks" / "results").glob("*/compare.json"))


@pytest.mark.parametrize("folder", COMPARISONS, ids=lambda path: path.name)
def test_the_tables_of_comparisons_are_those_in_the_documentation(folder: Path) -> None:
    rows = [line for line in (folder / "table.md").read_text().splitlines() if line.startswith("|")]
    page = (ROOT / "docs" / "recipes.md").read_text()
    assert len(rows) > 2
    assert "\n".join(rows) in page


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
