"""What a rewritten linear gives is what `conditioning.product` writes out, on the same draws.

The tolerance is that of float32 sums in another order; a wrong term, factor or rounding changes a product by 0.1% or
more.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from by_hand import SUMMATION_ORDER, relative_error
from treatments import ROLES, SPLITS, Treatment, policy
from written_out import Linear, Result, linear_graph, results

import metis_compile


def check(linear: Linear) -> dict[str, Result]:
    """All results of the graph as written out; what is multiplied must really have been rounded."""
    found = results(linear)
    for name, (actual, expected, exact) in found.items():
        assert actual.dtype == expected.dtype
        assert relative_error(actual, expected) < SUMMATION_ORDER, name
        assert "basis" in name or relative_error(actual, exact) > 1e-3, name
    return found


@pytest.mark.parametrize("preset", [p for p in metis_compile.presets() if p != "high"])
def test_of_every_preset(preset: str) -> None:
    """At sizes at which 1.5% is two directions, none a multiple of 16."""
    linear = linear_graph(preset, 150, 114, 136)
    if preset.startswith(("metis", "best")):
        assert all(split.how.rank >= 2 for split in linear.splits)
    check(linear)


@pytest.mark.parametrize("preset", ["metis", "metis-v1"])
@pytest.mark.parametrize("steps", [3, 8])
def test_by_a_basis_that_was_there(preset: str, steps: int) -> None:
    """metis moves it on in every step; as published it stays, and is made anew after eight."""
    found = check(linear_graph(preset, 150, 114, 136, steps=steps))
    bases = [result for name, result in found.items() if "basis" in name]
    assert len(bases) == (2 if preset == "metis" else 3)
    for actual, _, before in bases:
        assert (relative_error(actual, before) < SUMMATION_ORDER) == (preset == "metis-v1" and steps == 3)


@pytest.mark.parametrize("split", SPLITS)
def test_of_every_split(split: str) -> None:
    check(linear_graph(policy(*[("nvfp4", split)] * 3), 50, 40, 24))


@pytest.mark.parametrize(
    "split", ["clamp", "whole channels", "mean, e4m3 row", "spectral, high", "spectral, e4m3 row", "spectral, residual"]
)
@pytest.mark.parametrize("role", ROLES)
def test_of_one_operand_that_is_split(role: str, split: str) -> None:
    """The partner is then the operand that is not: no factors of its own."""
    check(linear_graph(policy(*(("nvfp4", split if role == r else None) for r in ROLES)), 50, 40, 24))


@pytest.mark.parametrize("split", ["mean, high", "mean, e4m3 row", "mean, residual", "compensated, residual"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_partner_that_is_left_high_stays_so(split: str, dtype: torch.dtype) -> None:
    treated = policy(("high", None), ("nvfp4", split), ("nvfp4", split))
    check(linear_graph(treated, 50, 40, 24, dtype=dtype))


COMPOSITIONS: dict[str, list[Treatment]] = {
    "mxfp4, split and turned": [("mxfp4, turned", "spectral, high")] * 3,
    "turned by 32 and split": [("mxfp4, turned by 32", "channels")] * 3,
    "turned by fresh signs of 64, clamped": [("stochastic, turned by 64", "clamp")] * 3,
    "mxfp4, split": [("mxfp4", "chain")] * 3,
    "16x16 weights, split activations": [("16x16", None), ("nvfp4", "compensated"), ("nvfp4", "mean, high")],
    "16x16 weights that are split": [("16x16", "spectral, residual"), ("nvfp4", None), ("nvfp4", None)],
    "four-over-six and split": [("4/6", "compensated"), ("4/6", "compensated"), ("stochastic 4/6", "spectral, high")],
    "turned and split": [("turned", "spectral, high")] * 3,
    "turned, split, and read as quantized": [("turned", "spectral, residual")] * 3,
    "turned, split and compensated": [("turned", "compensated")] * 3,
    "turned by fresh signs, rounded at random, split": [("stochastic, turned", "compensated chain, kept")] * 3,
    "turned, with corrected scales, split": [("eden, turned", "mean, residual")] * 3,
    "one scale for a tensor, split": [("fp8", "spectral, residual")] * 3,
}


@pytest.mark.parametrize("name", COMPOSITIONS)
def test_of_what_is_combined(name: str) -> None:
    check(linear_graph(policy(*COMPOSITIONS[name]), 50, 40, 24))


def test_compensation_reads_the_codes_transformed_back() -> None:
    """At sizes that need no filling up: a product with the transformed codes would be one too."""
    check(linear_graph(policy(*[("turned", "compensated")] * 3), 64, 48, 32))


def test_other_draws_give_other_products() -> None:
    """So that the tests above, which draw the same, would notice another stream."""
    linear = linear_graph("metis-paper", 50, 40, 24)
    other = replace(linear, splits=[split._replace(stream=split.stream + 20) for split in linear.splits])
    for name, (actual, expected, _) in results(other).items():
        assert relative_error(actual, expected) > 0.02, name
