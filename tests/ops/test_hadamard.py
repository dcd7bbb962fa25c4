"""metis::hadamard and its inverse: the transform of `metis_compile.conditioning`, traced, faked, and written out."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from metis_compile.conditioning.hadamard import SIZES, fixed_signs, hadamard, signs_from
from metis_compile.ops.hadamard import HADAMARD, INVERSE_HADAMARD
from metis_compile.passes.lowering.decompose_hadamard import write_transforms


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("shape", "axis"), [((20, 33), 0), ((20, 33), -1), ((2, 16, 32), 1)])
def test_is_the_transform(shape: tuple[int, ...], axis: int, dtype: torch.dtype) -> None:
    x = torch.randn(shape).to(dtype)
    sized = [signs_from(torch.tensor([5]), 0, size) for size in SIZES]
    for given, signs in (([], fixed_signs()), *(([drawn], drawn) for drawn in sized)):
        y = HADAMARD(x, axis, *given)
        assert torch.equal(y, hadamard(x, axis, signs))
        back = INVERSE_HADAMARD(y, axis, x.shape[axis], *given)
        assert back.shape == x.shape
        torch.testing.assert_close(back, x.float(), rtol=0, atol=1e-5)  # sums of 16 products or more, twice


@pytest.mark.parametrize("tracing", ["fake", "symbolic"])
def test_is_one_node_that_can_be_written_out(tracing: Any) -> None:
    def run(x: torch.Tensor, signs: torch.Tensor) -> list[torch.Tensor]:
        y = HADAMARD(x, 0, signs)
        return [y, INVERSE_HADAMARD(HADAMARD(x, 1), 1, x.shape[1])]

    x, signs = torch.randn(20, 33), signs_from(torch.tensor([5]))
    gm = make_fx(run, tracing_mode=tracing)(x, signs)
    assert sum(n.target in (HADAMARD, INVERSE_HADAMARD) for n in gm.graph.nodes) == 3
    for node in gm.graph.nodes:
        if node.target in (HADAMARD, INVERSE_HADAMARD):
            node.meta["val_before"] = [str(s) for s in node.meta["val"].shape]
    assert write_transforms(gm.graph) == 3
    assert not any(n.target in (HADAMARD, INVERSE_HADAMARD) for n in gm.graph.nodes)
    gm.recompile()
    for found, wanted in zip(gm(x, signs), run(x, signs), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_counts_its_products() -> None:
    x = torch.randn(20, 33)
    for run, flops in (
        (lambda: HADAMARD(x, 0), 2 * 32 * 33 * 16),
        (lambda: INVERSE_HADAMARD(x[:16], 0, 10), 2 * 16 * 33 * 16),
    ):
        with FlopCounterMode(display=False) as counter:
            run()
        assert counter.get_total_flops() == flops


@pytest.mark.parametrize("op", [HADAMARD, lambda x, axis, signs=None: INVERSE_HADAMARD(x, axis, 4, signs)])
def test_arguments_are_checked(op: Any) -> None:
    x = torch.randn(16, 16)
    with pytest.raises(TypeError, match=re.escape("x must be float32, bfloat16 or float16, got int64")):
        op(x.long(), 0)
    with pytest.raises(
        ValueError, match=re.escape("signs must have one of the shapes [16], [32], [64], [128], got [8]")
    ):
        op(x, 0, torch.ones(8))
    with pytest.raises(TypeError, match="signs must be float32, got float64"):
        op(x, 0, torch.ones(16, dtype=torch.float64))
    with pytest.raises(IndexError, match=r"metis::.*hadamard"):
        op(x, 2)
