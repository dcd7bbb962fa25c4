"""Which operand of which product costs the loss: each alone quantized, and each alone left in high precision."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from metis_compile.options import one_policy, read_options
from metis_compile.passes.graph.sites import Operand, Site
from metis_compile.policy import Policy
from metis_compile.sensitivity.program import BlameError, Outcome, program

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

BY = ("module", "kind")
Unit = tuple[str, str, str]  # module, gemm, operand


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What a choice of quantized operands does, over all batches.

    loss: the mean loss minus that of high precision, of the same batches. gradient: ||g - g0|| / ||g0|| of all
    parameters' gradients together, g0 in high precision; the root of the mean square over batches.
    """

    loss: float
    gradient: float


@dataclass(frozen=True, kw_only=True)
class Share:
    """One operand of a product, or of the same product in all layers that `module` matches."""

    module: str  # a name, or a glob that a rule of a policy takes: "layers.*.attention.key"
    gemm: str  # fprop, dgrad or wgrad
    operand: str  # weight, activation or gradient; "both" where a Hadamard transform ties them
    treatments: tuple[str, ...]  # what the policy does to it
    alone: Effect  # it alone is quantized
    without: Effect  # all is quantized but this: what is missing from `Blame.total` is what it costs


@dataclass(frozen=True, kw_only=True)
class Blame:
    """What `blame` found. Prints as a table, what costs most first."""

    policy: str
    batches: int
    loss: float  # mean, in high precision
    total: Effect  # everything quantized as the policy says
    shares: tuple[Share, ...]

    def ranked(self, by: Literal["loss", "gradient"] = "loss") -> list[Share]:
        """Shares by what each alone does to the loss or the gradient, most first."""
        return sorted(self.shares, key=lambda share: getattr(share.alone, by), reverse=True)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return asdict(self)

    def plot(self, path: str | os.PathLike[str], by: Literal["loss", "gradient"] = "loss") -> None:
        """Writes a heat map to a PNG file: modules down, operands of products across. Needs matplotlib."""
        from metis_compile.sensitivity.plot import draw

        draw(self, Path(path), by)

    def __str__(self) -> str:
        from rich.console import Console

        text = StringIO()
        known = sys.stdout.isatty() or "COLUMNS" in os.environ
        Console(file=text, width=None if known else 120).print(self)
        return text.getvalue().rstrip()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from metis_compile.sensitivity.table import table

        yield from table(self)


def blame(
    loss: Callable[..., Any],
    batches: Sequence[Any],
    *,
    policy: str | os.PathLike[str] | Policy | None = None,
    by: Literal["module", "kind"] = "module",
    progress: Callable[[int, int], None] | None = None,
) -> Blame:
    """Measures what quantizing each operand does to the loss and its gradients, forward and backward, without training.

    loss: called as `loss(*batch)`, gives a scalar tensor; it finds the model by itself, as a closure does, and has to
    be one graph for torch.compile. batches: tuples of its arguments, all of the same shapes. by: "module" measures each
    module by itself, "kind" all layers together that differ by a number in their name. progress: called with how many
    of how many runs are done.

    Each run is a forward and a backward of every batch, eager, with the C++ kernels on the CPU. The model, the batches
    and the random generators are left as they were. Bases of spectral splits are made anew in each run.

    Raises PolicyError for a mistake in the policy, and BlameError, a ValueError, for a loss that is no scalar tensor
    with a gradient or not one graph, no batches, batches of several shapes, and a policy that quantizes nothing here.
    """
    if by not in BY:
        raise ValueError(f"metis: by must be {' or '.join(BY)}, got {by!r}")
    config, _ = read_options({} if policy is None else {"policy": policy}, None)
    one_policy(config, "blame")
    with program(loss, batches, config) as of_loss:
        sites = of_loss.sites(config)
        units = _units(sites, by)
        if not units:
            raise BlameError(f"metis: policy {config.policy.name} quantizes nothing of this model")
        runs = 2 * len(units) + 2
        done = 0

        def told(outcomes: list[Outcome]) -> list[Outcome]:
            nonlocal done
            done += 1
            if progress is not None:
                progress(done, runs)
            return outcomes

        def measured(wanted: Callable[[Site, Operand], bool]) -> Effect:
            return _effect(told(of_loss.run(config, wanted)), high)

        high = told(of_loss.run_high())
        total = measured(lambda site, operand: True)
        shares = []
        for unit, treatments in units.items():
            module, gemm, operand = unit
            alone = measured(partial(_is_of, unit, by))
            without = measured(partial(_is_not_of, unit, by))
            shares.append(
                Share(module=module, gemm=gemm, operand=operand, treatments=treatments, alone=alone, without=without)
            )
    mean = sum(outcome.loss for outcome in high) / len(high)
    return Blame(policy=config.policy.name, batches=len(high), loss=mean, total=total, shares=tuple(shares))


def _units(sites: Sequence[Site], by: str) -> dict[Unit, tuple[str, ...]]:
    """What is measured by itself -> the treatments in it."""
    found: dict[Unit, dict[str, None]] = {}
    for site in sites:
        for operand in site.operands:
            if operand.decision is not None and operand.decision.treatment.spec is not None:
                found.setdefault(_unit(site, operand, by), {})[str(operand.decision.treatment)] = None
    return {unit: tuple(treatments) for unit, treatments in found.items()}


def _unit(site: Site, operand: Operand, by: str) -> Unit:
    """(module, gemm, operand) that it is measured as a part of."""
    tied = any(o.decision is not None and o.decision.treatment.hadamard for o in site.operands)
    module = re.sub(r"(^|\.)\d+(?=\.|$)", r"\1*", site.module) if by == "kind" else site.module
    return module, site.gemm, "both" if tied else operand.role


def _is_of(unit: Unit, by: str, site: Site, operand: Operand) -> bool:
    return _unit(site, operand, by) == unit


def _is_not_of(unit: Unit, by: str, site: Site, operand: Operand) -> bool:
    return _unit(site, operand, by) != unit


def _effect(outcomes: Sequence[Outcome], high: Sequence[Outcome]) -> Effect:
    pairs = list(zip(outcomes, high, strict=True))
    loss = sum(outcome.loss - reference.loss for outcome, reference in pairs) / len(pairs)
    squares = []
    for outcome, reference in pairs:
        off = sum(float((a - b).square().sum()) for a, b in zip(outcome.gradients, reference.gradients, strict=True))
        size = sum(float(b.square().sum()) for b in reference.gradients)
        squares.append(off / size if size else math.nan)
    return Effect(loss=loss, gradient=math.sqrt(sum(squares) / len(squares)))
