"""The noise of stochastic rounding in Triton; `numerics/noise.py` is the definition."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def mix(x):
    """lowbias32 on uint32."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def stream_key(seed, stream):
    """The low and high halves, uint32, of the int64 seed of a stream."""
    key = seed + stream.to(tl.int64) * -7046029254386353131
    return (key & 0xFFFFFFFF).to(tl.uint32), ((key >> 32) & 0xFFFFFFFF).to(tl.uint32)


@triton.jit
def noise_at(low, high, key_low, key_high):
    """2^24 times the noise, int32 in [0, 2^24), at positions given in halves, uint32."""
    bits = mix(low ^ key_low) + (key_high + high * 0x85EBCA6B)
    return (mix(bits) >> 8).to(tl.int32)


@triton.jit
def noise_in(start, width, key_low, key_high, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDE: tl.constexpr):
    """The noise of [ROWS, COLUMNS] at int64 position `start` in rows of `width`. WIDE: positions reach 2^32."""
    m, n = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    if WIDE:
        position = start + m.to(tl.int64) * width + n
        low, high = (position & 0xFFFFFFFF).to(tl.uint32), (position >> 32).to(tl.uint32)
    else:  # modulo 2^32 is enough
        low = (start & 0xFFFFFFFF).to(tl.uint32) + (m * width).to(tl.uint32) + n.to(tl.uint32)
        high = tl.zeros_like(low)
    return noise_at(low, high, key_low, key_high)
