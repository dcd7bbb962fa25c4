"""What chance does to a paired gap, and what each setting of the optimizer does to chance."""

import statistics
from typing import Any

from metis_compile.measure.markdown import markdown_table
from metis_compile.train.report import gap

__all__ = ["chance"]

LOSSES = ("train_loss", "validation_loss", "averaged_loss")
HEADINGS = ("setting", "full precision", "run", "seeds", "train gap", "validation gap", "of averaged weights")


def chance(results: dict[str, dict[str, Any]]) -> str:
    """A line for each setting and run: the mean gap to full precision ± the deviation of one seed."""
    numbers = results["chance"]
    by_run = {(run["setting"], run["arm"], run["seed"]): run for run in numbers["runs"]}
    lines = []
    for setting in numbers["settings"]:
        name = setting["name"]
        seeds = {arm: [s for t, a, s in by_run if (t, a) == (name, arm)] for _, arm, _ in by_run}
        high = statistics.fmean(by_run[name, "high", seed]["validation_loss"] for seed in seeds["high"])
        for arm in ("nvfp4", "high+perturbed"):
            common = sorted(set(seeds["high"]) & set(seeds.get(arm, [])))
            if len(common) > 1:
                gaps = [
                    spread([gap(by_run[name, arm, s][of], by_run[name, "high", s][of]) for s in common])
                    for of in LOSSES
                ]
                lines.append([setting["what"], f"{high:.3f}", f"`{arm}`", str(len(common)), *gaps])
    return f"{numbers['title'][0].upper()}{numbers['title'][1:]}.\n\n" + markdown_table(HEADINGS, lines)


def spread(gaps: list[float]) -> str:
    return f"{statistics.fmean(gaps):+.2f} % ± {statistics.stdev(gaps):.2f}"
