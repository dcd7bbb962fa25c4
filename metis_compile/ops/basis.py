"""The operators that make bases and move them on, each the plain torch of `metis_compile.conditioning.spectral`.

`metis::fresh_basis(x, seed, stream, rank, ..., kept?, stale?) -> [rank, columns]`: a basis from a sketch of x; where
`stale`, one bool, is there and false it is `kept`, and no sketch is made. `metis::power_step(x, basis, left?)` is one
power step over all rows and its orthonormalization. Written out in a graph they are a hundred nodes and more, and a
sketch would be made in each step, to be thrown away in most. torch.utils.flop_counter knows their products.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from metis_compile.conditioning import Spectral, resolve_rank
from metis_compile.conditioning.operators import using
from metis_compile.conditioning.sketch import sampled_rows

__all__ = ["FRESH_BASIS", "POWER_STEP"]

_library = torch.library.Library("metis", "FRAGMENT")
_library.define(
    "fresh_basis(Tensor x, Tensor seed, int stream, int rank, float sample, int sample_least, str sketch, "
    "int oversample, int power_steps, Tensor? kept=None, Tensor? stale=None) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag, torch.Tag.cudagraph_unsafe),  # it looks at `stale`
)
_library.define("power_step(Tensor x, Tensor basis, Tensor? left=None) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))


@torch.library.impl(_library, "fresh_basis", "CompositeExplicitAutograd")
def _fresh_basis(
    x: Tensor,
    seed: Tensor,
    stream: int,
    rank: int,
    sample: float,
    sample_least: int,
    sketch: str,
    oversample: int,
    power_steps: int,
    kept: Tensor | None = None,
    stale: Tensor | None = None,
) -> Tensor:
    if stale is not None and kept is not None and not bool(stale):
        return kept.to(torch.float32).clone(memory_format=torch.contiguous_format)
    how = Spectral(
        rank=rank,
        sample=sample,
        sample_least=sample_least,
        sketch=sketch,
        oversample=oversample,
        power_steps=power_steps,
    )
    with using(None):
        return how.fresh_basis(x, seed, stream=stream, rank=rank).clone(memory_format=torch.contiguous_format)


@torch.library.impl(_library, "power_step", "CompositeExplicitAutograd")
def _power_step(x: Tensor, basis: Tensor, left: Tensor | None = None) -> Tensor:
    with using(None):
        return Spectral().update_basis(x, basis, left).clone(memory_format=torch.contiguous_format)


@torch.library.register_fake("metis::fresh_basis", lib=_library)
def _(x: Tensor, seed: Tensor, stream: int, rank: int, *_: Any, **__: Any) -> Tensor:
    return x.new_empty((rank, x.shape[1]), dtype=torch.float32)


@torch.library.register_fake("metis::power_step", lib=_library)
def _(x: Tensor, basis: Tensor, left: Tensor | None = None) -> Tensor:
    return x.new_empty(basis.shape, dtype=torch.float32)


@register_flop_formula(torch.ops.metis.fresh_basis, get_raw=True)
def _fresh_basis_flops(
    x: Tensor,
    seed: Tensor,
    stream: int,
    rank: int,
    sample: float,
    sample_least: int,
    sketch: str,
    oversample: int,
    power_steps: int,
    kept: Tensor | None = None,
    stale: Tensor | None = None,
    *,
    out_val: Any = None,
) -> int:
    """Of a basis that is made; none where `stale` is known to be false. A fake `stale` is not known."""
    if type(stale) is Tensor and not bool(stale):
        return 0
    columns = x.shape[1]
    width = resolve_rank(rank + oversample, *x.shape)
    rows = sampled_rows(x.shape[0], sample, sample_least * width)
    flops = 2 * rows * columns * width * (1 + 2 * power_steps)
    if width > rank:
        flops += 2 * rows * width * (columns + width) + 2 * columns * width * rank
    return flops


@register_flop_formula(torch.ops.metis.power_step)
def _power_step_flops(x: Any, basis: Any, left: Any = None, *, out_shape: Any = None) -> int:
    return 2 * math.prod(x) * basis[0] * (2 if left is None else 1)


FRESH_BASIS = torch.ops.metis.fresh_basis.default
POWER_STEP = torch.ops.metis.power_step.default
