"""A comparison on disk: what is there is read, what is missing is run, and all of it is summed up."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from metis_compile.compare import order
from metis_compile.compare.cost import Cost
from metis_compile.compare.page import page
from metis_compile.compare.plot import draw, draw_cost
from metis_compile.compare.record import Record, read
from metis_compile.compare.run import identity, record_path
from metis_compile.compare.run_config import BASELINE, RunConfig
from metis_compile.compare.summary import Row, markdown, summarize, to_json
from metis_compile.compare.title import title_of
from metis_compile.html_report import check, policy_texts, write
from metis_compile.measure.folder import check_folder, writing
from metis_compile.measure.machine import machine
from metis_compile.measure.progress import JobProgress
from metis_compile.measure.schedule import Failure, Job, run_jobs
from metis_compile.train import corpus
from metis_compile.train.errors import TrainError
from metis_compile.train.page import explanations
from metis_compile.train.settings import Settings

__all__ = ["Comparison", "Options", "Outcome"]

FILES = {"report": "compare.json", "table": "table.md", "order": "order.md", "plot": "gap.png"}
SETTINGS_BEFORE = identity(Settings())


@dataclass(frozen=True, kw_only=True)
class Options:
    """How it is run. But for ``branch``, and the threads by rounding, nothing here changes a trial's curve."""

    out: Path
    branch: int = 0  # steps that full precision trains once for all arms of a seed, which go on from there
    jobs: int = 1  # trials at a time
    threads: int | None = None  # of each; None: all cores divided by jobs
    average: int = 100  # last steps in the training loss
    rounds: int = 10  # steps that the step-time ratio is measured over; 0: none
    html: Path | None = None  # where the report goes as a page of HTML

    def __post_init__(self) -> None:
        for name, least in (("jobs", 1), ("average", 1), ("rounds", 0), ("branch", 0)):
            if getattr(self, name) < least:
                raise TrainError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.threads is not None and self.threads < 1:
            raise TrainError(f"threads must be at least 1, got {self.threads}")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a comparison has so far."""

    rows: list[Row]
    title: str
    files: dict[str, Path]
    failures: list[Failure]
    missing: list[str]  # trials without a record
    signal: int | None  # that stopped it

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "title": self.title,
            "rows": to_json(self.rows),
            "missing": self.missing,
            **order.to_json(self.rows),
        }


class Comparison:
    """Some arms, from some seeds, with one set of settings. The baseline is always among the arms.

    Raises TrainError if the folder holds trials that do not belong, PolicyError for a policy that cannot be loaded,
    ReportError for a page that can't be written.
    """

    def __init__(self, arms: Sequence[str], seeds: Sequence[int], settings: Settings, options: Options) -> None:
        made = [RunConfig(text=text) for text in dict.fromkeys([BASELINE, *arms])]
        names = [arm.name for arm in made]
        for arm in made:
            if names.count(arm.name) > 1:
                raise TrainError(f"two policies have the name {arm.name!r}: rename one of the files")
        self.arms, self.seeds, self.settings, self.options = made, sorted(set(seeds)), settings, options
        self._check_branch()
        self.variants = {arm.text: arm.variant() for arm in made}
        if settings.text is not None:
            self.text = corpus.load_file(Path(settings.text).expanduser())
        else:
            self.text = corpus.load_library()
        self.text.require(settings.context)

    def _check_branch(self) -> None:
        branch, steps = self.options.branch, self.settings.steps
        if branch >= steps:
            raise TrainError(f"branch must be below the {steps} steps, got {branch}")
        for arm in self.arms if branch else ():
            if arm.changes_the_start:
                raise TrainError(
                    f"{arm.text!r} starts otherwise and can't go on from where the others do: leave it out"
                )

    def run(self, console: Console) -> Outcome:
        """Run what is missing, seed by seed, then measure what each arm costs, then sum up."""
        options = self.options
        check_folder(options.out, TrainError)
        if options.html is not None:
            check(options.html)
        have = self._records()
        missing = [(arm, seed) for seed in self.seeds for arm in self.arms if (arm.text, seed) not in have]
        if have:
            console.print(f"{len(have)} of {len(have) + len(missing)} trials are in {options.out}", highlight=False)
        failures: list[Failure] = []
        stopped = None
        if missing:
            failures, stopped = self._run(self._branches(missing), console)
            if stopped is None and not failures:
                failures, stopped = self._run([self._trial(arm, seed) for arm, seed in missing], console)
        if stopped is None and options.rounds:
            more, stopped = self._measure_costs(console)
            failures += more
        return self.summary(failures, stopped)

    def _run(self, jobs: Sequence[Job], console: Console) -> tuple[list[Failure], int | None]:
        if not jobs:
            return [], None
        with JobProgress(console, len(jobs), at_once=self.options.jobs) as progress:
            _, failures, stopped = run_jobs(jobs, at_once=self.options.jobs, progress=progress)
        return failures, stopped

    def summary(self, failures: Sequence[Failure] = (), stopped: int | None = None) -> Outcome:
        """Sum up what is there, and write it beside the trials."""
        out, have, costs = self.options.out, self._records(), self._costs()
        wanted = [(arm, seed) for arm in self.arms for seed in self.seeds]
        records = [have[arm.text, seed] for arm, seed in wanted if (arm.text, seed) in have]
        baselines = [r for r in records if r.arm == BASELINE]
        last = min(self.options.average, self.settings.steps)
        rows = summarize(records, baselines, costs, last)
        title = title_of(self.settings, self.options.branch, last)
        files = {name: out / file for name, file in FILES.items()}
        if any(row.cost is not None for row in rows):
            files["cost"] = out / "cost.png"
        if self.options.html is not None:
            files["html"] = self.options.html
        outcome = Outcome(
            rows=rows,
            title=f"{title}; gaps: mean over seeds ± deviation",
            files=files if rows else {},
            failures=list(failures),
            missing=[f"{arm.name} seed {seed}" for arm, seed in wanted if (arm.text, seed) not in have],
            signal=stopped,
        )
        if rows:
            report = outcome.to_dict() | {
                "heading": title,
                "settings": identity(self.settings, self.options.branch),
                "machine": machine(),
            }
            with writing(out, TrainError):
                draw(records, baselines, files["plot"])
                if "cost" in files:
                    draw_cost(rows, files["cost"])
                files["report"].write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
                files["table"].write_text(markdown(rows, outcome.title))
                files["order"].write_text(order.markdown(rows, title))
            if self.options.html is not None:
                self._write_page(records, outcome, report, self.options.html)
        return outcome

    def _write_page(self, records: Sequence[Record], outcome: Outcome, report: dict[str, Any], path: Path) -> None:
        policies = {arm.policy: self.variants[arm.text].options for arm in self.arms if arm.policy != BASELINE}
        write(
            page(
                records,
                outcome.rows,
                report["settings"],
                report["machine"],
                title=outcome.title,
                explained=[
                    found
                    for options in policies.values()
                    for found in explanations(self.settings, (options or {})["policy"])
                ],
                policies=[
                    (RunConfig(text=name).name, policy_texts((options or {})["policy"]))
                    for name, options in policies.items()
                ],
            ),
            path,
        )

    def _trial(self, arm: RunConfig, seed: int) -> Job:
        settings = asdict(replace(self.settings, policy=arm.policy, seed=seed))
        request = self._request("trial", arm, settings)
        return self._job(f"{arm.name} seed {seed}", request, self.settings.steps, self.options.jobs)

    def _branches(self, runs: Sequence[tuple[RunConfig, int]]) -> list[Job]:
        """What must be trained before these trials: a checkpoint per seed. Those that are there are quickly done."""
        branch = self.options.branch
        if not branch:
            return []
        jobs = []
        for seed in dict.fromkeys(seed for _, seed in runs):
            settings = asdict(replace(self.settings, policy=BASELINE, seed=seed))
            request = self._request("branch", RunConfig(text=BASELINE), settings)
            jobs.append(self._job(f"first {branch} steps, seed {seed}", request, branch, self.options.jobs))
        return jobs

    def _request(self, kind: str, arm: RunConfig, settings: dict[str, Any]) -> dict[str, Any]:
        out, branch = str(self.options.out), self.options.branch
        return {"kind": kind, "arm": arm.text, "settings": settings, "out": out, "branch": branch}

    def _job(self, label: str, request: dict[str, Any], steps: int, at_once: int) -> Job:
        threads = self.options.threads or max(1, torch.get_num_threads() // at_once)
        return Job(
            label=label,
            worker="metis_compile.compare.worker",
            request=request | {"threads": threads},
            steps=steps,
            threads=threads,
        )

    def _records(self) -> dict[tuple[str, int], Record]:
        """The records that are there, by arm and seed; all are checked to belong."""
        found = {}
        for arm in self.arms:
            for seed in self.seeds:
                path = record_path(self.options.out, arm, seed)
                if path.exists():
                    record = read(path)
                    self._check(path, record, arm)
                    found[arm.text, seed] = record
        return found

    def _check(self, path: Path, record: Record, arm: RunConfig) -> None:
        mine = identity(self.settings, self.options.branch)
        # A record from before a setting was there was trained with what is now its default.
        theirs = SETTINGS_BEFORE | record.settings
        keys = dict.fromkeys([*mine, *theirs])
        differing = [f"{k} {theirs.get(k)!r} and not {mine.get(k)!r}" for k in keys if theirs.get(k) != mine.get(k)]
        if differing:
            raise TrainError(f"{path} is of a comparison with {', '.join(differing)}: give another --out")
        if record.text != self.text.digest:
            raise TrainError(f"{path} is of a comparison on another text (another Python?): give another --out")
        if record.policy != self.variants[arm.text].digest:
            raise TrainError(f"{path}: the policy {arm.policy!r} was changed since; delete the file to run it again")

    def _costs(self) -> dict[str, Cost]:
        path = self.options.out / "costs.json"
        if not path.exists():
            return {}
        try:
            stored = json.loads(path.read_text())
            return {
                text: Cost(**entry["cost"])
                for text, entry in stored.items()
                if text in self.variants and entry["policy"] == self.variants[text].digest
            }
        except (ValueError, TypeError, KeyError) as error:
            raise TrainError(f"{path} is damaged ({error}): delete it to measure again") from None

    def _measure_costs(self, console: Console) -> tuple[list[Failure], int | None]:
        """Step times, one arm after the other, beside the baseline's; what is known already is kept."""
        known = self._costs()
        jobs = [
            self._job(
                f"step time of {arm.name}",
                {
                    "kind": "cost",
                    "arm": arm.text,
                    "settings": asdict(self.settings),
                    "rounds": self.options.rounds,
                },
                0,
                1,
            )
            for arm in self.arms
            if arm.text not in known
        ]
        if not jobs:
            return [], None
        with JobProgress(console, len(jobs)) as progress:
            results, failures, stopped = run_jobs(jobs, at_once=1, progress=progress)
        path = self.options.out / "costs.json"
        entries = json.loads(path.read_text()) if path.exists() else {}
        for arm in self.arms:
            label = f"step time of {arm.name}"
            if label in results:
                entries[arm.text] = {"policy": self.variants[arm.text].digest, "cost": results[label]}
        with writing(path, TrainError):
            path.write_text(json.dumps(entries, indent=2) + "\n")
        return failures, stopped
