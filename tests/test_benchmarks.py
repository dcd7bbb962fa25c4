"""What is written about measurements is what was measured."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import docs_advice
import docs_tables
import pytest

from metis_compile import Policy, presets
from metis_compile.bench import step
from metis_compile.compare import order, summary

ROOT = Path(__file__).parent.parent
README, RESULTS = ROOT / "README.md", ROOT / "benchmarks" / "results"
COMPARISONS = sorted(path.parent for path in RESULTS.glob("*/compare.json"))
BENCHMARKS = docs_tables.load()
TABLES = sorted(path for path in RESULTS.glob("*/*.md") if path.parent.name not in docs_tables.FOLDERS)
RATIO = re.compile(r"(?<![\d.])\d+\.\d\dx")


@pytest.mark.parametrize("table", TABLES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_tables_are_those_in_the_documentation(table: Path) -> None:
    rows = [line for line in table.read_text().splitlines() if line.startswith("|")]
    pages = [page.read_text() for page in (ROOT / "docs").glob("*.md")]
    assert len(rows) > 2
    assert any("\n".join(rows) in page for page in pages)


def test_there_are_tables() -> None:
    assert COMPARISONS


@pytest.mark.parametrize("page", docs_tables.PAGES, ids=lambda path: path.name)
def test_pages_say_what_their_numbers_give(page: Path) -> None:
    assert page.read_text() == docs_tables.rewritten(page.read_text(), BENCHMARKS), "run make docs-tables"


def test_every_block_is_on_one_page() -> None:
    pages = "".join(page.read_text() for page in docs_tables.PAGES)
    assert sorted(found[1] for found in docs_tables.BLOCK.finditer(pages)) == sorted(docs_tables.BLOCKS)
    assert set(docs_tables.FOLDERS) <= BENCHMARKS.keys()


@pytest.mark.parametrize("folder", [name for name in BENCHMARKS if name in docs_tables.FOLDERS])
def test_tables_beside_the_numbers(folder: str) -> None:
    beside = RESULTS / folder / f"{docs_tables.FOLDERS[folder]}.md"
    assert beside.read_text() == docs_tables.table_beside(folder, BENCHMARKS)


@pytest.mark.parametrize(
    ("block", "path", "change"),
    [
        ("step-512", ["step-512", "rows", 0, "times", "candidate", "gradients"], 1.1),
        ("step-512", ["step-512", "rows", 0, "times", "candidate", "whole"], 1.1),
        ("step-1024", ["step-1024", "rows", 0, "times", "plain", "gradients"], 1.1),
        ("targets", ["step-512", "rows", 1, "times", "candidate", "gradients"], 1.1),
        ("compile", ["compile", "rows", 1, "cold", "starts", 0, "wall_seconds"], 1.1),
        ("compile", ["compile", "rows", 1, "cold", "starts", 0, "phases", "metis_joint_pass"], 2),
        ("memory", ["memory", "rows", 1, "saved_bytes"], 1.1),
        ("memory", ["memory", "rows", 1, "input_bits"], 1.1),
        ("targets", ["memory", "rows", 1, "input_bits"], 1.1),
        ("against", ["against", "times", "metis, published paper", "eager", "gradients"], 1.1),
        ("train", ["train", "policy", "step_seconds"], 1.1),
        ("presets", ["compare-scratch", "rows", 1, "validation_gap", "values"], 2),
        ("presets", ["compare-branch", "rows", 1, "validation_gap", "mean"], 2),
        ("compare-scratch", ["compare-scratch", "rows", 1, "validation_gap", "values"], 2),
        ("chance", ["chance", "runs", 0, "validation_loss"], 2),
        ("advice", ["compare-scratch", "rows", 1, "validation_gap", "values"], 2),
        ("advice", ["compare-llama", "rows", 1, "validation_gap", "mean"], 2),
    ],
)
def test_another_number_gives_another_page(block: str, path: list[Any], change: float) -> None:
    changed = copy.deepcopy(BENCHMARKS)
    *parents, last = path
    place: Any = changed
    for key in parents:
        place = place[key]
    place[last] = [change * x for x in place[last]] if isinstance(place[last], list) else change * place[last]
    assert docs_tables.block(block, changed) != docs_tables.block(block, BENCHMARKS)


def test_a_section_without_numbers_is_left_out() -> None:
    assert docs_tables.block("scaling", {}) == ""
    labels = {"steps": "steps"} | {how: how for how in ("cold", "warm", "plain_cold", "plain_warm")}
    row = {"policy": "nvfp4", "axis": "width", "at": 64, "times": labels}
    side = {"gradients": [1.0], "whole": [1.0], "saved_bytes": 1}
    times: dict[str, Any] = {"steps": {"plain": side, "candidate": side}}
    for label, seconds in {"cold": 3.0, "plain_cold": 2.0, "warm": 1.0, "plain_warm": 2.0}.items():
        times[label] = {"wall_seconds": seconds}
    numbers = {"title": "growth", "rows": [row, row | {"axis": "layers", "at": 2}], "times": times, "rounds": 3}
    made = docs_tables.block("scaling", {"scaling": numbers})
    assert "## How it grows" in made
    assert "metis bench scaling nvfp4 --widths 64 --depths 2 --rounds 3" in made
    assert "| nvfp4 | width | 64 | 1.00x (1.00-1.00) | 1.50x | 0.50x | 1.00x |" in made


def test_the_command_of_a_comparison_gives_its_settings_and_arms() -> None:
    numbers = {
        "rows": [{"arm": arm, "seeds": [0, 1, 2]} for arm in ("high", "nvfp4", "best")],
        "settings": {
            "width": 64,
            "batch": 16,
            "steps": 600,
            "final_rate": 0.0,
            "learning_rate": 0.001,
            "device": "cpu",
        },
    }
    made = docs_tables.command("compare-scratch", numbers)
    assert " ".join(made.replace("\\\n", " ").split()) == (
        "metis compare nvfp4 best --seeds 3 --threads 1 --width 64 --final-rate 0.0 "
        "--out benchmarks/results/compare-scratch"
    )


def test_what_was_not_run_is_said_by_policy() -> None:
    made = docs_tables.not_run(["metis seed 5", "high+perturbed seed 7", "metis seed 6"])
    assert made == "`metis` with seeds 5, 6; `high+perturbed` with seed 7"


def test_advice_names_presets_and_numbers_that_there_are() -> None:
    for _, take, _, measured in docs_advice.ADVICE:
        assert measured(BENCHMARKS)
        assert set(re.findall(r"`([^`]+)`", take)) <= set(presets())
    without = {folder: numbers for folder, numbers in BENCHMARKS.items() if not folder.startswith("compare-scratch")}
    assert "from scratch" not in docs_advice.advice(without)


def test_a_target_is_reached_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    (target,) = (t for t in docs_tables.TARGETS if t.what.startswith("step of nvfp4, width 512"))
    monkeypatch.setattr(docs_tables, "TARGETS", [target])

    def line(mine: float) -> str:
        times = {"plain": {"gradients": [1.0], "whole": [1.0]}, "candidate": {"gradients": [mine], "whole": [mine]}}
        rows = [{"policy": "nvfp4", "settings": {"width": 512}, "times": times}]
        return docs_tables.targets({"step-512": {"rows": rows}}).splitlines()[-1]

    assert "| 1.20x (1.20-1.20) | yes |" in line(1.2)
    assert "| 1.21x (1.21-1.21) | **no** |" in line(1.21)
    assert "| - | **no** |" in docs_tables.targets({"step-512": {"rows": []}})


@pytest.mark.parametrize("page", docs_tables.PAGES, ids=lambda path: path.name)
def test_ratios_in_a_page_are_measured_ones(page: Path) -> None:
    texts = [docs_tables.block(name, BENCHMARKS) for name in docs_tables.BLOCKS]
    measured = {ratio for text in [*texts, *(table.read_text() for table in TABLES)] for ratio in RATIO.findall(text)}
    assert len(measured) > 20
    assert set(RATIO.findall(page.read_text())) <= measured


def test_what_the_readme_says_of_the_cost_of_best() -> None:
    (said,) = re.findall(r"for steps (\d\.\d) times as\s+long as `nvfp4`'s", README.read_text())
    found = []
    for folder in ("step-512", "step-1024"):
        ratio = {row["policy"]: step.ratios(row["times"])[0].median for row in BENCHMARKS[folder]["rows"]}
        found.append(ratio["best"] / ratio["nvfp4"])
    assert {f"{ratio:.1f}" for ratio in found} == {said}


def test_what_the_readme_says_of_training_from_scratch() -> None:
    text = " ".join(README.read_text().split())
    pattern = r"ends (\S+) % behind full precision, where `nvfp4` ends (\S+) % behind \((\d+) seeds; significant\)"
    ((best, nvfp4, seeds),) = re.findall(pattern, text)
    rows = summary.from_json(BENCHMARKS["compare-scratch"]["rows"])
    places = {row.arm: row for row in order.ordered(rows)}
    assert (best, nvfp4) == tuple(f"{places[name].validation_gap.mean:.2f}" for name in ("best", "nvfp4"))
    assert all(len(places[name].seeds) == int(seeds) for name in ("high", "best", "nvfp4"))
    assert order.first(rows) == "nvfp4"
    (difference,) = (d for d in order.from_first(rows) if d.arm == "best")
    assert difference.mean < 0
    assert difference.significant


@pytest.mark.parametrize("name", ["operands", "operands-llama"])
def test_the_gap_by_operand_follows_from_its_losses(name: str) -> None:
    folder = RESULTS / name
    report, table = json.loads((folder / "operands.json").read_text()), (folder / "operands.md").read_text()
    high = report["high"]
    for arm in report["arms"]:
        Policy.from_toml(arm["policy"])
        train = 100 * (sum(arm["losses_from_300"][-100:]) / sum(high["losses"][-100:]) - 1)
        validation = 100 * (arm["validation_loss"] / high["validation_loss"] - 1)
        assert f"| {arm['name']} | {arm['what']} | {train:+.2f} % | {validation:+.2f} % |" in table
