"""Noise for stochastic rounding: uniform numbers that depend on a seed, a stream and a position alone.

A counter-based generator draws the same bits eagerly, in a fused kernel and when a checkpointed region is computed
again, and needs no state but its seed. Not Philox: libraries that have it lay its numbers over a tensor in orders of
their own, and this is a few integer operations on the position, in plain torch, C++ and Triton alike: the same bits
everywhere. The mixing function is the 32-bit `lowbias32` of Ellis and Wellons (2018), used twice with a key in between;
stochastic rounding needs numbers that are uniform and look independent, not secrecy.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

SEED_BITS = 63  # what torch.randint can draw
_MULTIPLIERS = (0x7FEB352D, 0x846CA68B - 2**32)
_STREAM_STEP = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio: consecutive streams get distant keys
_HIGH_STEP = 0x85EBCA6B


def uniform_noise(seed: Tensor, stream: int, shape: Sequence[int]) -> Tensor:
    """float32 in [0, 1), multiples of 2^-24, of `shape`, on the seed's device.

    seed: int64, one element. stream: numbers the tensors that share a seed, 0 <= stream < 2^31. The element at
    row-major position p is mix(mix(p_low ^ key_low) + key_high + p_high * 0x85EBCA6B) >> 8, scaled by 2^-24, where
    key is stream_seed(seed, stream) and low and high are 32-bit halves. Raises TypeError for another seed.
    """
    if seed.dtype != torch.int64 or seed.numel() != 1:
        raise TypeError(f"seed must be one int64, got {seed.dtype} of shape {tuple(seed.shape)}")
    key = stream_seed(seed, stream).reshape(())
    numel = 1
    for size in shape:
        numel = numel * size
    position = torch.arange(numel, dtype=torch.int64, device=seed.device)
    bits = _mix(_low(position) ^ _low(key)) + _low(key >> 32) + _low(position >> 32) * _signed(_HIGH_STEP, 32)
    return (((_mix(bits) >> 8) & 0xFFFFFF).to(torch.float32) * 2.0**-24).reshape(list(shape))


def stream_seed(seed: Tensor, stream: int) -> Tensor:
    """The int64 seed of a stream: seed + stream * 0x9E3779B97F4A7C15, modulo 2^64; `seed` itself for stream 0."""
    return seed + stream_offset(stream) if stream else seed


def stream_offset(stream: int) -> int:
    """What a stream adds to a seed, as two's complement: its own streams are then those of a seed that starts there."""
    return _signed(stream * _STREAM_STEP, 64)


def _low(value: Tensor) -> Tensor:
    """The low 32 bits of int64, as int32."""
    low = value & 0xFFFFFFFF
    return torch.where(low >= 2**31, low - 2**32, low).to(torch.int32)


def _signed(value: int, bits: int) -> int:
    """`value` modulo 2^bits, as two's complement."""
    value %= 2**bits
    return value - 2**bits if value >= 2 ** (bits - 1) else value


def _mix(x: Tensor) -> Tensor:
    """lowbias32 on int32; `& mask` makes the shifts logical."""
    x = (x ^ ((x >> 16) & 0xFFFF)) * _MULTIPLIERS[0]
    x = (x ^ ((x >> 15) & 0x1FFFF)) * _MULTIPLIERS[1]
    return x ^ ((x >> 16) & 0xFFFF)
