"""Floating-point operations that splits add, counted as graphs run, and what "auto" says that they are at most."""

from __future__ import annotations

import re

import pytest
from torch.profiler import profile
from torch.utils.flop_counter import FlopCounterMode
from treatments import ROLES
from written_out import linear_graph

import metis_compile
from metis_compile import Policy
from metis_compile.conditioning import resolve_rank
from metis_compile.conditioning.sketch import sampled_rows

TOKENS, INPUTS, OUTPUTS, RANK = 128, 64, 96, 3
FRESH = f'{{ kind = "spectral", rank = {RANK}, refresh = 1 }}'
KEPT = f'{{ kind = "spectral", rank = {RANK} }}'
COMPENSATED = f'{{ kind = "spectral", rank = {RANK}, compensate = true }}'


def product(m: int, n: int, k: int) -> int:
    return 2 * m * n * k


def split(rows: int, columns: int, other: int, k: int) -> int:
    """Of one operand, an activation or a gradient, in the two products that read it; `other`: its linear's far side."""
    parts = product(rows, k, columns) + product(rows, columns, k)  # L = X F^T, and L F to take from X
    along_features = product(k, other, columns) + product(rows, other, k)  # F W^T, and L times it
    along_tokens = product(other, k, rows) + product(other, columns, k)  # G^T L, and F times it
    return parts + along_features + along_tokens


def power_step(rows: int, columns: int, k: int) -> int:
    return product(rows, k, columns) + product(k, columns, rows)


def sketch(rows: int, columns: int, k: int) -> int:
    """Y = S^T Omega, a power step, and the leading directions of (S Q)^T (S Q)."""
    width = k + 8
    seen = sampled_rows(rows, 0.05, 4 * width)
    rayleigh_ritz = product(seen, width, columns) + product(width, width, seen) + product(columns, k, width)
    return product(columns, width, seen) + power_step(seen, columns, width) + rayleigh_ritz


def compensation(rows: int, columns: int, k: int) -> int:
    """X F^T, Q F^T, and L (F F^T)."""
    return 2 * product(rows, k, columns) + product(k, k, columns) + product(rows, k, k)


def both(t: int, i: int, k: int) -> int:
    """In wgrad the factors of G read X as it was saved: residual and factors, L_G^T L_X and F_X times it."""
    return product(k, k, t) + product(k, i, k)


def counted(**splits: str) -> int:
    """Of the graph of one linear, beyond those of its three products."""
    lines = [f'{r} = {{ format = "nvfp4"{", split = " + splits[r] if r in splits else ""} }}' for r in ROLES]
    linear = linear_graph(
        Policy.from_toml("\n".join(["[recipe.r]", *lines, '[[rule]]\nrecipe = "r"'])), TOKENS, INPUTS, OUTPUTS
    )
    with FlopCounterMode(display=False) as counter:
        linear.gm(*linear.values.values())
    return int(counter.get_total_flops()) - 3 * product(TOKENS, INPUTS, OUTPUTS)


t, i, o, k = TOKENS, INPUTS, OUTPUTS, RANK
OUTER = product(o, i, 1)
WORK: dict[str, tuple[dict[str, str], int]] = {
    "none": ({}, 0),
    "mean of X": ({"activation": '"mean"'}, 2 * OUTER),  # mu W^T, and (G^T 1) mu; sums are not counted
    "mean of both": ({"activation": '"mean"', "gradient": '"mean"'}, 4 * OUTER + product(1, i, 1)),
    "fresh basis of X": ({"activation": FRESH}, split(t, i, o, k) + sketch(t, i, k)),
    "fresh basis of G": ({"gradient": FRESH}, split(t, o, i, k) + sketch(t, o, k)),
    "kept basis of X": ({"activation": KEPT}, split(t, i, o, k) + power_step(t, i, k)),
    "kept basis of G": ({"gradient": KEPT}, split(t, o, i, k) + power_step(t, o, k)),
    "compensated X": ({"activation": COMPENSATED}, split(t, i, o, k) + power_step(t, i, k) + compensation(t, i, k)),
    "kept bases of both": (
        {"activation": KEPT, "gradient": KEPT},
        split(t, i, o, k) + power_step(t, i, k) + split(t, o, i, k) + power_step(t, o, k) + both(t, i, k),
    ),
    # G's is there in backward, and has other codes in each of its two products
    "both compensated": (
        {"activation": COMPENSATED, "gradient": COMPENSATED},
        split(t, i, o, k)
        + power_step(t, i, k)
        + compensation(t, i, k)
        + split(t, o, i, k)
        + power_step(t, o, k)
        + 2 * compensation(t, o, k)
        + both(t, i, k),
    ),
}


@pytest.mark.parametrize("name", WORK)
def test_added_work(name: str) -> None:
    splits, work = WORK[name]
    assert counted(**splits) == work


SHAPES = [(4096, 1024, 1024), (4096, 384, 1536), (4096, 1536, 384), (512, 1024, 1024), (65536, 8192, 28672)]


@pytest.mark.parametrize(("t", "i", "o"), SHAPES)
def test_auto_bounds_it(t: int, i: int, o: int) -> None:
    """Within 5% for X and G split, all rows read; with X compensated up to a third more."""
    k = resolve_rank("auto", t, i, o)
    plain = 3 * product(t, i, o)
    follow = split(t, i, o, k) + power_step(t, i, k) + split(t, o, i, k) + power_step(t, o, k)
    assert follow <= 0.05 * plain
    assert follow + both(t, i, k) <= 0.0501 * plain
    assert follow + both(t, i, k) + compensation(t, i, k) <= 0.05 * 4 / 3 * plain
    sampled = follow - 0.9 * (power_step(t, i, k) + power_step(t, o, k))  # as the presets read rows
    assert sampled + both(t, i, k) + compensation(t, i, k) <= 0.05 * plain


@pytest.mark.parametrize("preset", [p for p in metis_compile.presets() if p != "high"])
def test_no_preset_decomposes_a_matrix(preset: str) -> None:
    """No SVD, eigendecomposition or QR of anything but what is as thin as a sketch."""
    linear = linear_graph(preset, 150, 114, 136)
    with profile(record_shapes=True) as found:  # it sees into the operators that make bases
        linear.gm(*linear.values.values())
    events = [event for event in found.events() if re.search("svd|eig|qr|cholesky|lu_", event.name)]
    sizes = [min(shape) for event in events for shape in event.input_shapes if len(shape) == 2]
    ranks = [call.how.rank for call in linear.splits if call.how.makes_basis]
    assert bool(sizes) == bool(ranks)
    assert max(sizes, default=0) <= max(ranks, default=0) + 8
