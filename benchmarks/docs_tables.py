"""Writes the numbers in docs/benchmarks.md, docs/recipes.md and README.md anew from the JSON in benchmarks/results.

``make docs-tables`` runs it. A page keeps its prose; what stands between ``<!-- numbers: NAME -->`` and
``<!-- end -->`` is made here. So is the Markdown table beside each benchmark's JSON.
"""

import io
import json
import re
import sys
import textwrap
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import against
import step_profile
from docs_advice import advice
from docs_chance import chance
from docs_targets import TARGETS
from rich.console import Console

from metis_compile.bench import memory, scaling, start, step
from metis_compile.bench.report import markdown
from metis_compile.compare import order, summary
from metis_compile.compare.run_config import BASELINE
from metis_compile.measure.markdown import markdown_table
from metis_compile.train.report import Report, Side
from metis_compile.train.settings import Settings

__all__ = ["BLOCK", "BLOCKS", "PAGES", "RESULTS", "TARGETS", "block", "load", "main", "rewritten", "table_beside"]

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGES = (ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "recipes.md", ROOT / "README.md")
BLOCK = re.compile(r"(?<=^<!-- numbers: )([\w-]+)( -->\n).*?(?=^<!-- end -->$)", re.MULTILINE | re.DOTALL)
KINDS: dict[str, Any] = {"step": step, "compile": start, "memory": memory, "scaling": scaling, "against": against}
# The folders in benchmarks/results; one without a JSON file yet is left out.
FOLDERS = {
    "step-512": "step",
    "step-1024": "step",
    "compile": "compile",
    "memory": "memory",
    "scaling": "scaling",
    "against": "against",
}

# Comparisons from the first step; docs_advice.py reads the first.
SCRATCH = ("compare-scratch",)

Results = dict[str, dict[str, Any]]  # of each folder that there is, the JSON


def load(root: Path = RESULTS) -> Results:
    """What was measured."""
    files = {folder: root / folder / f"{name}.json" for folder, name in FOLDERS.items()}
    found = {folder: json.loads(path.read_text()) for folder, path in files.items() if path.is_file()}
    others = {
        "train": root / "train.json",
        "chance": root / "chance" / "chance.json",
        "profile": root / "profile" / "profile.json",
        **{folder: root / folder / "compare.json" for folder in ("compare-branch", "compare-llama", *SCRATCH)},
    }
    return found | {name: json.loads(path.read_text()) for name, path in others.items() if path.is_file()}


def targets(results: Results) -> str:
    """What was to be reached, and what was."""
    rows = []
    for target in TARGETS:
        if target.folder in results:
            value, text = target.measured(results[target.folder]) or (None, "-")
            reached = value is not None and target.reached(value)
            rows.append([target.what, text, "yes" if reached else "**no**", f"`{target.command}`"])
    return markdown_table(("target", "measured", "reached", "command"), rows)


def where(results: Results) -> str:
    """The machine and the commit of each benchmark."""
    rows = []
    for folder, numbers in results.items():
        if folder in FOLDERS:
            machine = numbers["machine"]
            on = f"{machine['threads']} threads of {machine['gpu'] or machine['processor']}"
            rows.append([folder, machine["date"], commit(machine), on, f"torch {machine['torch']}"])
    return markdown_table(("numbers", "date", "commit", "on", "with"), rows)


def commit(about: dict[str, Any]) -> str:
    """Of a JSON's "machine" or "published"; "-" where none was recorded."""
    if about.get("commit") is None:
        return "-"
    return about["commit"][:10] + (", changed" if about["dirty"] else "")


def benchmark(folder: str) -> Callable[[Results], str]:
    """The title and the table of one."""

    def made(results: Results) -> str:
        if folder not in results:
            return ""
        numbers = results[folder]
        kind = KINDS[FOLDERS[folder]]
        title = numbers["title"][0].upper() + numbers["title"][1:]
        return f"{title}.\n\n" + markdown_table(kind.HEADINGS, kind.cells(numbers))

    return made


def against_them(results: Results) -> str:
    """The table, and which commit of the published code it is of."""
    made = benchmark("against")(results)
    about = results.get("against", {}).get("published")
    return made + (f"\nTheir commit: {commit(about)}.\n" if about else "")


GROWTH_OPTIONS = {"width": "--widths", "layers": "--depths", "tokens": "--tokens"}


def growth(results: Results) -> str:
    """A whole section, once there are numbers."""
    made = benchmark("scaling")(results)
    if not made:
        return ""
    numbers = results["scaling"]
    names = dict.fromkeys(row["policy"] for row in numbers["rows"])
    points = {axis: [str(r["at"]) for r in numbers["rows"] if r["axis"] == axis] for axis in GROWTH_OPTIONS}
    given = {option: ",".join(dict.fromkeys(points[axis])) for axis, option in GROWTH_OPTIONS.items()}
    sizes = [f"{option} {at}" for option, at in given.items() if at]
    command = " ".join(["metis bench scaling", *names, *sizes, f"--rounds {numbers['rounds']}"])
    command += " \\\n    --out benchmarks/results/scaling"
    return f"## How it grows\n\n{made}\n```console\n$ {command}\n```\n"


def where_a_step_goes(results: Results) -> str:
    """The profile's title and table."""
    if "profile" not in results:
        return ""
    numbers = results["profile"]
    return f"{numbers['title'][0].upper()}{numbers['title'][1:]}.\n\n{step_profile.table(numbers)}"


def train(results: Results) -> str:
    """What ``make train`` printed."""
    numbers = results["train"]
    known = {field.name for field in fields(Side)}
    sides = {
        name: Side(**{key: value for key, value in numbers[name].items() if key in known})
        for name in ("full_precision", "policy")
    }
    files = {what: Path("runs/train", name) for what, name in FILES.items()}
    report = Report(
        settings=Settings.from_dict(numbers["settings"]),
        device=numbers["device"],
        text=numbers["text"]["source"],
        text_digest=numbers["text"]["sha256"],
        parameters=numbers["parameters"],
        averaged=numbers["averaged_steps"],
        full_precision=sides["full_precision"],
        policy=sides["policy"],
        files=files,
    )
    console = Console(file=io.StringIO(), width=100, force_terminal=False, color_system=None)
    console.print(report.table())
    assert isinstance(console.file, io.StringIO)
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    lines += [f"{what}: {path}" for what, path in files.items()]
    return "```text\n" + "\n".join(lines) + "\n```\n"


# Of the comparisons in docs/recipes.md, what a first look takes.
SHOWN = ("fp8", "mxfp8", "nvfp4", "averis", "metis", "best", "metis-fp8")


def presets(results: Results) -> str:
    """What the main presets cost and gain: from the first step, and in the last half of a run."""
    whole = {row.arm: row for row in order.ordered(summary.from_json(results["compare-scratch"]["rows"]))}
    half = {row["arm"]: row for row in results["compare-branch"]["rows"]}
    cells = []
    for name in SHOWN:
        row, gap = half[name], half[name]["validation_gap"]
        late = f"{gap['mean']:+.2f} % ± {gap['deviation']:.2f}"
        early = order.interval(whole[name].validation_gap) if name in whole else "-"
        saved, flops = 100 * (row["saved_ratio"] - 1), 100 * (row["cost"]["flops_ratio"] - 1)
        cells.append([f"`{name}`", early, late, f"{saved:+.0f} %", f"{flops:+.1f} %"])
    headings = ("preset", "from scratch", "last half", "saved for backward", "floating-point operations")
    return markdown_table(headings, cells)


def scratch(folder: str) -> Callable[[Results], str]:
    """Who is behind whom, with what trained them."""

    def made(results: Results) -> str:
        if folder not in results:
            return ""
        numbers = results[folder]
        text = order.markdown(summary.from_json(numbers["rows"]), numbers["heading"])
        machine = numbers["machine"]
        on = f"{machine['date']}, {machine['processor']}, torch {machine['torch']}, commit {commit(machine)}"
        missing = f" Not run: {not_run(numbers['missing'])}." if numbers["missing"] else ""
        return f"{text[0].upper()}{text[1:]}\n{on}.{missing}\n\n```console\n$ {command(folder, numbers)}\n```\n"

    return made


def not_run(trials: list[str]) -> str:
    """Trials named "POLICY seed N", with all seeds of a policy together."""
    seeds: dict[str, list[str]] = {}
    for trial in trials:
        arm, seed = trial.rsplit(" seed ", 1)
        seeds.setdefault(arm, []).append(seed)
    return "; ".join(f"`{arm}` with seed{'s' * (len(of) > 1)} {', '.join(of)}" for arm, of in seeds.items())


def command(folder: str, numbers: dict[str, Any]) -> str:
    """What trains the same again."""
    default = asdict(Settings(batch=16, steps=600))  # those of metis compare
    given = [
        f"--{name.replace('_', '-')} {value}"
        for name, value in numbers["settings"].items()
        if value != default[name] and name not in ("device", "dtype")
    ]
    arms = [row["arm"] for row in numbers["rows"] if row["arm"] != BASELINE]
    seeds = max(len(row["seeds"]) for row in numbers["rows"])
    parts = ["metis compare", *arms, f"--seeds {seeds}", "--threads 1", *given, f"--out benchmarks/results/{folder}"]
    return textwrap.fill(" ".join(parts), 110, subsequent_indent="    ", break_on_hyphens=False).replace("\n", " \\\n")


FILES = {"plot": "loss.png", "report": "report.json", "checkpoint": "checkpoint.pt"}
BLOCKS: dict[str, Callable[[Results], str]] = {
    "targets": targets,
    "where": where,
    **{folder: benchmark(folder) for folder in ("step-512", "step-1024", "compile", "memory")},
    "scaling": growth,
    "against": against_them,
    "profile": where_a_step_goes,
    "train": train,
    "presets": presets,
    "advice": advice,
    "chance": chance,
    **{folder: scratch(folder) for folder in SCRATCH},
}


def block(name: str, results: Results) -> str:
    """What belongs between the marks of this name."""
    made = BLOCKS[name](results)
    return f"\n{made}\n" if made else ""


def rewritten(page: str, results: Results) -> str:
    """The page with these numbers."""
    return BLOCK.sub(lambda found: found[1] + found[2] + block(found[1], results), page)


def table_beside(folder: str, results: Results) -> str:
    """The Markdown that a benchmark writes with its JSON."""
    kind = KINDS[FOLDERS[folder]]
    return markdown(results[folder], kind.HEADINGS, kind.cells(results[folder]))


def main() -> None:
    """Rewrite the pages, and each benchmark's own Markdown."""
    results = load()
    for page in PAGES:
        page.write_text(rewritten(page.read_text(), results))
    for folder, name in FOLDERS.items():
        if folder in results:
            beside = RESULTS / folder / f"{name}.md"
            beside.write_text(table_beside(folder, results))
    print(f"numbers of {', '.join(results)}", file=sys.stderr)


if __name__ == "__main__":
    main()
