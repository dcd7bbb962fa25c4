"""E8M0 scales, powers of two in a byte: from bytes to values, and in and out of torch's dtype.

The two operators are views that a compiler does not see through: Inductor's C++ cannot hold a float8_e8m0fnu.
"""

from __future__ import annotations

import torch
from torch import Tensor

E8M0_NAN = 255


def e8m0_value(byte: Tensor) -> Tensor:
    """fp32 values of int32 E8M0 bytes, 2^(byte - 127); 0 is 2^-127, subnormal in fp32; 255 is NaN."""
    return _float_of_bits(torch.clamp(byte << 23, min=1 << 22), byte)


def e8m0_inverse(byte: Tensor) -> Tensor:
    """fp32 inverses of int32 E8M0 bytes up to 253, where finite blocks end: never subnormal; 255 is NaN."""
    return _float_of_bits((254 - byte) << 23, byte)


def _float_of_bits(bits: Tensor, byte: Tensor) -> Tensor:
    # The NaN is put in as fp32, so that what may become a buffer is fp32 and not a view of int32.
    return torch.where(byte == E8M0_NAN, torch.nan, bits.view(torch.float32))


@torch.library.custom_op("metis::e8m0_from_bytes", mutates_args=())
def e8m0_from_bytes(byte: Tensor) -> Tensor:
    """uint8 -> float8_e8m0fnu, the same bits."""
    return byte.clone().view(torch.float8_e8m0fnu)


@e8m0_from_bytes.register_fake
def _(byte: Tensor) -> Tensor:
    return torch.empty_like(byte, dtype=torch.float8_e8m0fnu)


@torch.library.custom_op("metis::e8m0_to_bytes", mutates_args=())
def e8m0_to_bytes(scale: Tensor) -> Tensor:
    """float8_e8m0fnu -> uint8, the same bits."""
    return scale.view(torch.uint8).clone()


@e8m0_to_bytes.register_fake
def _(scale: Tensor) -> Tensor:
    return torch.empty_like(scale, dtype=torch.uint8)
