"""The operators that stand in a graph for what a conditioning does: see `metis_compile.conditioning.operators`."""

from __future__ import annotations

from torch import Tensor

from metis_compile.conditioning import Spectral
from metis_compile.numerics import QuantSpec
from metis_compile.ops.basis import FRESH_BASIS, POWER_STEP
from metis_compile.ops.buffers import TO_BFLOAT16
from metis_compile.ops.quantization import DEQUANTIZE, QUANTIZE
from metis_compile.ops.residual import RESIDUAL


class GraphOperators:
    """What a traced conditioning calls."""

    def rounded(self, x: Tensor, spec: QuantSpec, axis: int, seed: Tensor | None, stream: int) -> Tensor:
        parts = QUANTIZE(x, str(spec), axis, *([] if seed is None else [seed, stream]))
        return DEQUANTIZE(parts, str(spec), axis, x.shape[axis])

    def to_bfloat16(self, x: Tensor) -> Tensor:
        return TO_BFLOAT16(x)  # type: ignore[no-any-return]

    def fresh_basis(
        self,
        split: Spectral,
        x: Tensor,
        seed: Tensor,
        stream: int,
        rank: int,
        kept: Tensor | None,
        stale: Tensor | None,
    ) -> Tensor:
        sketch = (split.sample, split.sample_least, split.sketch, split.oversample, split.power_steps)
        return FRESH_BASIS(x, seed, stream, rank, *sketch, *([] if kept is None else [kept, stale]))  # type: ignore[no-any-return]

    def residual(self, x: Tensor, mean: Tensor | None, left: Tensor | None, right: Tensor | None) -> Tensor:
        return RESIDUAL(x, *([mean] if left is None else [mean, left, right]))  # type: ignore[no-any-return]

    def power_step(self, x: Tensor, basis: Tensor, left: Tensor | None) -> Tensor:
        return POWER_STEP(x, basis, *([] if left is None else [left]))  # type: ignore[no-any-return]
