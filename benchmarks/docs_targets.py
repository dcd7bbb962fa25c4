"""The numbers to reach, and how each is read from a benchmark's JSON."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import against

from metis_compile.bench import memory, start, step
from metis_compile.bench.candidate import AUTOCAST, PLAIN
from metis_compile.measure.ratio import Ratio

__all__ = ["TARGETS", "Target"]


@dataclass(frozen=True, kw_only=True)
class Target:
    """A number to reach."""

    what: str  # with the limit, for people
    folder: str  # of the results
    measured: Callable[[dict[str, Any]], tuple[float, str] | None]  # from the JSON: what is compared, and as text
    reached: Callable[[float], bool]
    command: str


def step_target(policy: str, width: int, limit: float) -> Target:
    """Of forward and backward, over plain Inductor's."""

    def measured(numbers: dict[str, Any]) -> tuple[float, str] | None:
        for row in numbers["rows"]:
            if (row["policy"], row["settings"]["width"]) == (policy, width):
                ratio = step.ratios(row["times"])[0]
                return ratio.median, str(ratio)
        return None

    return Target(
        what=f"step of {policy}, width {width}: at most {limit:g} times plain Inductor's",
        folder=f"step-{width}",
        measured=measured,
        reached=lambda value: value <= limit,
        command=f"metis bench step {policy} --width {width}",
    )


def policies(numbers: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that are of a policy."""
    return [row for row in numbers["rows"] if row["policy"] not in (PLAIN, AUTOCAST)]


def worst(values: dict[str, tuple[float, str]]) -> tuple[float, str]:
    """The largest, with the name of its policy."""
    name = max(values, key=lambda policy: values[policy][0])
    return values[name][0], f"{values[name][1]}, {name}"


def start_ratio(how: str) -> Callable[[dict[str, Any]], tuple[float, str]]:
    """The largest of the policies' wall times over plain Inductor's, cold or warm."""

    def measured(numbers: dict[str, Any]) -> tuple[float, str]:
        (plain,) = (start.starts_of(row, how) for row in numbers["rows"] if row["policy"] == PLAIN)
        found: dict[str, Ratio | None] = {
            row["policy"]: start.ratio_of(start.starts_of(row, how), plain, "wall") for row in policies(numbers)
        }
        return worst({policy: (ratio.median, str(ratio)) for policy, ratio in found.items() if ratio is not None})

    return measured


def our_passes(numbers: dict[str, Any]) -> tuple[float, str]:
    """The largest share of a cold start, in percent."""
    shares = {row["policy"]: 100 * start.shares_of(start.starts_of(row, "cold"))["passes"] for row in policies(numbers)}
    return worst({policy: (value, f"{value:.1f} %") for policy, value in shares.items()})


def bits(numbers: dict[str, Any]) -> tuple[float, str]:
    """The most that a policy keeps, to two places: the scale of the whole tensor is in the third."""
    return worst(
        {row["policy"]: (round(row["input_bits"], 2), f"{row['input_bits']:.2f}") for row in policies(numbers)}
    )


def peak(numbers: dict[str, Any]) -> tuple[float, str]:
    """The highest of the policies' peaks over plain Inductor's."""
    found = {row["policy"]: memory.peak_ratio(row, numbers) for row in policies(numbers)}
    return worst({policy: (ratio.median, str(ratio)) for policy, ratio in found.items() if ratio is not None})


def published(policy: str) -> Callable[[dict[str, Any]], tuple[float, str] | None]:
    """The least and the most by which a policy is faster, over the forms of the published code."""

    def measured(numbers: dict[str, Any]) -> tuple[float, str] | None:
        found = sorted(against.ratio_of(row, numbers).median for row in numbers["rows"] if row["policy"] == policy)
        return (found[0], f"{found[0]:.2f}x to {found[-1]:.2f}x") if found else None

    return measured


LIMITS = {
    512: {"nvfp4": 1.2, "averis": 1.25, "metis": 1.5, "best": 1.5},
    1024: {"nvfp4": 1.12, "averis": 1.15, "metis": 1.3, "best": 1.3},
}
TARGETS = [
    *(step_target(policy, width, limit) for width, limits in LIMITS.items() for policy, limit in limits.items()),
    Target(
        what="cold start of every policy: at most 1.6 times plain Inductor's",
        folder="compile",
        measured=start_ratio("cold"),
        reached=lambda value: value <= 1.6,
        command="metis bench compile",
    ),
    Target(
        what="warm start of every policy: at most 1.2 times plain Inductor's",
        folder="compile",
        measured=start_ratio("warm"),
        reached=lambda value: value <= 1.2,
        command="metis bench compile",
    ),
    Target(
        what="our passes: under 5 % of every policy's cold start",
        folder="compile",
        measured=our_passes,
        reached=lambda value: value < 5,
        command="metis bench compile",
    ),
    Target(
        what="saved of a linear's input: at most 4.5 bits an element",
        folder="memory",
        measured=bits,
        reached=lambda value: value <= 4.5,
        command="metis bench memory",
    ),
    Target(
        what="peak of every policy: below plain Inductor's",
        folder="memory",
        measured=peak,
        reached=lambda value: value < 1,
        command="metis bench memory",
    ),
    *(
        Target(
            what=f"step of {policy}: 4 times faster than the published code, in each of its forms",
            folder="against",
            measured=published(policy),
            reached=lambda value: value >= 4,
            command="python benchmarks/against.py",
        )
        for policy in ("metis", "metis-paper")
    ),
]
