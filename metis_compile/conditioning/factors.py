"""The format of thin factors, and of what they are multiplied by: the partner."""

from __future__ import annotations

import torch
from torch import Tensor

from metis_compile.conditioning.operators import operators
from metis_compile.conditioning.validation import check_name
from metis_compile.numerics import FORMATS, QuantSpec, fake_quantize, noise_shape, uniform_noise
from metis_compile.spelling import did_you_mean

HIGH = "high"
BFLOAT16 = "bfloat16"
PARTNERS = ("high", "e4m3 row", "residual")
STREAMS = 2**24  # apart: the streams that one split draws from, next to those of other tensors


def canonical_factors(text: object) -> str:
    """ "high" (float32), "bfloat16", a format's name, or the text of a QuantSpec; formats become the latter.

    Raises ValueError.
    """
    if not isinstance(text, str):
        raise ValueError(f"factors must be a text, got {text!r}")
    if text in (HIGH, BFLOAT16):
        return text
    if text in FORMATS:
        return str(QuantSpec.make(text))
    if " " in text:
        return str(QuantSpec.parse(text))
    names = [HIGH, BFLOAT16, *FORMATS]
    raise ValueError(
        f"factors must be one of {', '.join(map(repr, names))}, or a full text such as 'nvfp4 1x16 stochastic none', "
        f"got {text!r}{did_you_mean(text, names, cutoff=0.4)}"
    )


def check_partner(partner: object) -> None:
    """Raises ValueError unless `partner` is one of PARTNERS."""
    check_name("partner", partner, PARTNERS)


def partner_spec(partner: str, residual: QuantSpec | None) -> QuantSpec | None:
    """How the thin GEMM's other operand is quantized, along the contraction axis; None: not at all."""
    if partner == "residual":
        return residual
    return QuantSpec.make("fp8", "row") if partner == "e4m3 row" else None


def is_random(factors: str) -> bool:
    """Whether rounding these factors draws random numbers."""
    return factors not in (HIGH, BFLOAT16) and QuantSpec.parse(factors).needs_noise


def rounded_factor(factor: Tensor, factors: str, axis: int, seed: Tensor | None, stream: int) -> Tensor:
    """A float32 factor as it is after storing it in that format, with blocks along `axis`."""
    if factors == HIGH:
        return factor
    installed = operators()
    if factors == BFLOAT16:
        return round_to_bfloat16(factor) if installed is None else installed.to_bfloat16(factor).to(torch.float32)
    spec = QuantSpec.parse(factors)
    drawn = require_seed(seed, f"{spec.rounding} factors") if spec.needs_noise else None
    if installed is not None:
        return installed.rounded(factor, spec, axis, drawn, stream)
    noise = None if drawn is None else uniform_noise(drawn, stream, noise_shape(factor.shape, spec, axis))
    return fake_quantize(factor, spec, axis, noise)


def depends_on_axis(factors: str) -> bool:
    """Whether rounding these factors gives other values along another axis."""
    return factors not in (HIGH, BFLOAT16) and not QuantSpec.parse(factors).orientation_free


def round_to_bfloat16(x: Tensor) -> Tensor:
    """fp32 -> the nearest bfloat16, ties to even, as fp32. By bits: compilers drop a cast that is cast back."""
    bits = x.view(torch.int32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000).view(torch.float32)
    return torch.where(x == x, rounded, x)


def require_seed(seed: Tensor | None, what: str) -> Tensor:
    """The seed; ValueError where there is none."""
    if seed is None:
        raise ValueError(f"seed must be given for {what}, got None")
    return seed


def check_matrix(x: Tensor, axis: int) -> None:
    """Raises unless x is a floating-point matrix and `axis` one of its two."""
    if x.dim() != 2:
        raise ValueError(f"x must be a matrix [rows, columns], got {x.dim()} dimensions; fold the leading ones first")
    if not x.dtype.is_floating_point or x.dtype == torch.float64:
        raise TypeError(f"x must be float32, bfloat16, float16 or float8 to be split, got {x.dtype}")
    if axis not in (0, 1):
        raise ValueError(f"axis must be 0 (contracted along rows) or 1 (along columns), got {axis!r}")
