"""Singular values of activations before and after their split: what a quantizer no longer sees."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from metis_compile.conditioning import Conditioning
from metis_compile.html_report.blocks import Chart, Line, Section
from metis_compile.inspection.explain import Explanation
from metis_compile.policy import Policy

__all__ = ["Spectrum", "spectra", "spectra_section"]

MOST_ROWS = 2048  # tokens, evenly spaced
MOST_MODULES = 4
POWER_STEPS = 4  # of a basis that training keeps: from a new one to about what many steps make of it


@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """Singular values, largest first, of a module's input [tokens, features] and of what its split leaves."""

    module: str
    split: str  # the treatment
    before: list[float]
    after: list[float]


@torch.no_grad()
def spectra(model: nn.Module, forward: Callable[[], Any], explanation: Explanation, policy: Policy) -> list[Spectrum]:
    """Of the module in the middle of each kind whose fprop splits its activations, at most four.

    forward: runs the model, uncompiled, on some batch. explanation: of the same model under the same policy. A basis
    that training keeps is made anew from the batch.
    """
    wanted = _chosen(explanation, policy)
    with _inputs(model, list(wanted)) as seen:
        forward()
    found = []
    for module, (text, split) in wanted.items():
        if module not in seen:
            continue
        x = seen[module].detach().flatten(0, -2).float()
        x = x[:: max(1, x.shape[0] // MOST_ROWS)]
        values = [torch.linalg.svdvals(t.double()).tolist() for t in (x, _residual(split.with_rank(*x.shape), x))]
        found.append(Spectrum(module=module, split=text, before=values[0], after=values[1]))
    return found


def _chosen(explanation: Explanation, policy: Policy) -> dict[str, tuple[str, Conditioning]]:
    """Module -> (treatment, split): one module of each kind and each input that they share."""
    kinds: dict[str, list[tuple[str, str, Conditioning]]] = {}
    inputs: set[tuple[int, str]] = set()
    for site in explanation.sites:
        name = site.quantized.get("activation")
        if site.gemm != "fprop" or site.reason is not None or name is None or (site.graph, name) in inputs:
            continue
        text = site.treatment["activation"]
        for recipe in site.recipe.split(" and "):
            treatment = policy.recipe(recipe).treatment("activation")
            if treatment.split is not None and str(treatment) == text:
                inputs.add((site.graph, name))
                kinds.setdefault(re.sub(r"(^|\.)\d+(?=\.|$)", r"\1*", site.module), []).append(
                    (site.module, text, treatment.split)
                )
                break
    middle = [found[len(found) // 2] for found in kinds.values()][:MOST_MODULES]
    return {module: (text, split) for module, text, split in middle}


def _residual(split: Conditioning, x: Tensor) -> Tensor:
    seed = torch.zeros(1, dtype=torch.int64, device=x.device)
    basis = None
    if split.makes_basis:
        basis = split.fresh_basis(x, seed)
        for _ in range(POWER_STEPS if split.keeps_basis and split.track else 0):
            basis = split.update_basis(x, basis)
    return split.split(x, seed=seed, basis=basis).residual


@contextmanager
def _inputs(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Within: the first argument of each module, by its name, once it was called."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            if args and isinstance(args[0], Tensor) and args[0].dim() >= 2:
                seen[name] = args[0]

        return hook

    handles = [m.register_forward_pre_hook(keep(n)) for n, m in model.named_modules() if n in names]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def spectra_section(found: Sequence[Spectrum]) -> Section:
    """found: as :func:`spectra` gives them."""
    charts = [
        Chart(
            title=spectrum.module or "<model>",
            y_label="singular values over the largest",
            x_label="number of the singular value",
            lines=[
                Line(label=label, x=range(1, len(values) + 1), y=[_over(v, spectrum.before) for v in values], colour=i)
                for i, (label, values) in enumerate((("input", spectrum.before), ("after the split", spectrum.after)))
            ],
            x_scale="log",
            y_scale="log",
            half=len(found) > 1,
        )
        for spectrum in found
    ]
    splits = ", ".join(dict.fromkeys(spectrum.split for spectrum in found))
    return Section(
        id="spectra",
        title="Activations before and after their split",
        lead="Singular values of a module's input on a batch for validation, with the trained weights, and of the "
        f"residual that is quantized, with bases made anew from that batch. Treatment: {splits}.",
        blocks=charts,
    )


def _over(value: float, before: Sequence[float]) -> float:
    """Relative to the largest; what is nothing but rounding has no place."""
    share = value / before[0] if before and before[0] else 0.0
    return share if share > 1e-6 else float("nan")
