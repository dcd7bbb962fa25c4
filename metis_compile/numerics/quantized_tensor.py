"""A quantized tensor as its parts, and the function that makes one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metis_compile.numerics.blocks import normalize_axis
from metis_compile.numerics.formats import QuantSpec
from metis_compile.numerics.quantize import decode, encode, noise_shape


@dataclass(frozen=True, kw_only=True, eq=False)
class QuantizedTensor:
    """What :func:`quantize` made: exactly what a kernel reads, or a buffer saved for backward holds."""

    codes: Tensor  # uint8; of 4 bits: two to a byte along axis
    block_scales: (
        Tensor | None
    )  # of the scale's dtype (float8_e4m3fn, float8_e8m0fnu, float32); None for block "tensor"
    tensor_scale: Tensor | None  # 0-dim float32; nvfp4, and fp8 with block "tensor"
    spec: QuantSpec
    axis: int  # never negative
    shape: torch.Size  # of the tensor that was quantized
    dtype: torch.dtype  # of the tensor that was quantized

    @property
    def parts(self) -> list[Tensor]:
        """[codes, block_scales, tensor_scale] without what the format has not, as ``encode`` gives them."""
        return [part for part in (self.codes, self.block_scales, self.tensor_scale) if part is not None]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The values, in the original shape: computed in fp32, then cast to ``dtype``."""
        return decode(self.parts, self.spec, self.axis, self.shape[self.axis], dtype)


def quantize(
    x: Tensor,
    format: str = "nvfp4",
    axis: int = -1,
    block: str | None = None,
    rounding: str = "nearest",
    *,
    guard: str | None = None,
    scale_mode: str | None = None,
    select: str | None = None,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    amax: Tensor | None = None,
) -> QuantizedTensor:
    """Quantize ``x`` in blocks along ``axis``, the axis a GEMM will contract over.

    x: float32, bfloat16, float16 or float8, any shape with at least one dimension, any strides.
    format: nvfp4, mxfp4, mxfp8, mxfp8_e5m2, fp8, fp8_e5m2. block: nvfp4 1x16 (default), 16x16; mx 1x32;
    fp8 tensor (default), row, 1x128, 128x128. rounding: nearest (ties to even), stochastic;
    nvfp4 also eden. guard, scale_mode, select: see :class:`QuantSpec`. noise: for stochastic rounding, float32 uniform
    in [0, 1) of x's shape, for eden of the block scales'; None draws it from ``generator``, or from torch's own. amax:
    0-dim float32, that of an earlier tensor, for the scale of the whole tensor (nvfp4, fp8 by tensor); values above it
    saturate. None: x's own.

    Raises ValueError for a name that does not exist (it names the nearest one), noise or an amax that does not fit,
    TypeError for other dtypes, IndexError for an axis out of range. No gradient flows through it.
    """
    spec = QuantSpec.make(format, block, rounding, guard, scale_mode, select)
    if generator is not None and (noise is not None or not spec.needs_noise):
        raise ValueError("generator must be None unless rounding is 'stochastic' or 'eden' and noise is None")
    if spec.needs_noise and noise is None:
        noise = _draw(noise_shape(x.shape, spec, axis), x.device, generator)
    parts = encode(x, spec, axis, noise, amax)
    return QuantizedTensor(
        codes=parts[0],
        block_scales=None if spec.block == "tensor" else parts[1],
        tensor_scale=parts[-1] if spec.block == "tensor" or spec.fmt.tensor_scale else None,
        spec=spec,
        axis=normalize_axis(axis, x.dim()),
        shape=x.shape,
        dtype=x.dtype,
    )


def _draw(shape: list[int], device: torch.device, generator: torch.Generator | None) -> Tensor:
    # The overload with a generator refuses symbolic sizes, even when the generator is None.
    if generator is None:
        return torch.rand(shape, device=device, dtype=torch.float32)
    return torch.rand(shape, generator=generator, device=device, dtype=torch.float32)
