"""The Triton quantize kernel, interpreted, held to plain torch, byte for byte."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from same_bytes import assert_same_parts
from torch import Tensor

from metis_compile.kernels.quantize.ops import QUANTIZE_TILES
from metis_compile.numerics import QuantSpec, encode, noise_shape, uniform_noise

SEED = 0x7A5B_1234_9ABC_DEF0
NOTHING_ELSE = (None, None, None)  # factors and signs: see test_triton_conditioned.py


def quantized(
    x: Tensor,
    spec: QuantSpec,
    axes: Sequence[int],
    streams: Sequence[int],
    mean: Any = None,
    amax: Tensor | None = None,
) -> list[Tensor]:
    centered = x.float() if mean is None else x.float() - mean
    if amax is None:
        amax = centered.abs().amax() if spec.fmt.tensor_scale and x.numel() else torch.zeros(())
    return QUANTIZE_TILES(
        x,
        mean,
        *NOTHING_ELSE,
        amax if spec.fmt.tensor_scale else None,
        torch.tensor([SEED]) if spec.needs_noise else None,
        str(spec),
        list(axes),
        list(streams)[: len(axes)],
    )


def check_on_triton(
    x: Tensor,
    spec: QuantSpec,
    axes: Sequence[int],
    what: str = "",
    mean: Any = None,
    amax: Tensor | None = None,
) -> None:
    """All `axes` in one call, against one `encode` each. amax: one that was held."""
    streams = [3, 3] if spec.orientation_free else [3, 4]
    made = quantized(x, spec, axes, streams, mean, amax)
    centered = x if mean is None else x.float() - mean
    for i, (axis, stream) in enumerate(zip(axes, streams, strict=False)):
        noise = None
        if spec.needs_noise:
            noise = uniform_noise(torch.tensor([SEED]), stream, noise_shape(x.shape, spec, axis))
        expected = encode(centered, spec, axis, noise, amax)
        assert_same_parts([*made[2 * i : 2 * i + 2], *made[2 * len(axes) :]], expected, spec, f"{what} axis {axis}")
