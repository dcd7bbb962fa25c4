"""What the operators of `metis_compile.ops.quantization` refuse: by operator, argument, value and what is supported."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from refusals import assert_refused
from torch import Tensor

from metis_compile.numerics import QuantSpec, encode
from metis_compile.ops.buffers import TO_BFLOAT16
from metis_compile.ops.quantization import DEQUANTIZE, QUANTIZE
from metis_compile.ops.state import LOAD, STORE, handle_of

NVFP4, RANDOM, MXFP8 = "nvfp4 1x16 nearest", "nvfp4 1x16 stochastic round_up", "mxfp8 1x32 nearest floor"
SEED = torch.tensor([1])


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"x": torch.zeros(32, 32).double()}, TypeError, "x must be float32, bfloat16, float16, .* got float64"),
        ({"x": torch.zeros(32, 32).int()}, TypeError, "x must be float32, .* got int32"),
        ({"axis": 2}, IndexError, "axis must be between -2 and 1 for 2 dimensions, got 2"),
        ({"x": torch.zeros(())}, IndexError, "x must have at least one dimension to have axis 1, got none"),
        (
            {"x": torch.zeros(4, 32, 32), "spec": "nvfp4 16x16 nearest", "axis": 0},
            ValueError,
            "axis must be one of the last two dimensions for 16x16 blocks, .* got axis 0",
        ),
        ({"spec": "nvfp5 1x16 nearest"}, ValueError, "spec must be .*, got 'nvfp5 1x16 nearest': .*'nvfp4'"),
        ({"spec": "nvfp4"}, ValueError, "spec must be the text of a QuantSpec, got 'nvfp4': a spec must read"),
        ({"seed": SEED}, ValueError, r"seed must be None for 'nvfp4 1x16 nearest', got int64 \[1\]"),
        ({"spec": RANDOM}, ValueError, f"seed must be given for '{RANDOM}', got None"),
        ({"spec": RANDOM, "seed": SEED.float()}, TypeError, "seed must be int64, got float32"),
        ({"spec": RANDOM, "seed": SEED.expand(2)}, ValueError, r"seed must have one element, got shape \[2\]"),
        ({"spec": RANDOM, "seed": SEED.to("meta")}, ValueError, "seed must be on cpu like x, got meta"),
        ({"spec": RANDOM, "seed": SEED, "stream": -1}, ValueError, r"stream must be at least 0 .* 2\^31, got -1"),
        (
            {"spec": "nvfp4 16x16 nearest", "swizzled": True},
            ValueError,
            "swizzled must be for 1x16 or 1x32 blocks, got True for 'nvfp4 16x16 nearest'",
        ),
        (
            {"x": torch.zeros(4, 32, 32), "axis": 0, "swizzled": True},
            ValueError,
            "swizzled must be for one of the last two of 3 dimensions, got True",
        ),
    ],
)
def test_quantize(changed: dict[str, Any], error: type[Exception], message: str) -> None:
    given = {"x": torch.zeros(32, 32), "spec": NVFP4, "axis": 1, "seed": None, "stream": 0, "swizzled": False}
    QUANTIZE(*given.values())
    assert_refused(QUANTIZE, list((given | changed).values()), error, f"metis::quantize: {message}")


def parts(spec: str = NVFP4, **changed: Tensor) -> list[Tensor]:
    made = encode(torch.ones(4, 32), QuantSpec.parse(spec), 1)
    return list((dict(zip(("codes", "scales", "dec"), made, strict=False)) | changed).values())


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"parts": [torch.ones(4, 16).byte()]}, ValueError, r"must be \[codes, block_scales, tensor_scale\], got 1"),
        ({"parts": []}, ValueError, r"must be \[codes, block_scales, tensor_scale\], got 0 tensors"),
        ({"parts": parts(MXFP8)}, ValueError, r"must be \[codes, block_scales, tensor_scale\], got 2 tensors"),
        ({"parts": parts(codes=torch.zeros(4, 16))}, TypeError, "the codes of parts must be uint8, got float32"),
        ({"parts": parts(scales=torch.ones(4, 2))}, TypeError, "block_scales .* must be float8_e4m3fn, got float32"),
        ({"parts": parts(dec=torch.ones(()).double())}, TypeError, "tensor_scale .* must be float32, got float64"),
        ({"parts": parts(dec=torch.ones(1))}, ValueError, r"tensor_scale .* must have shape \[\] .*, got \[1\]"),
        ({"parts": parts(dec=torch.ones((), device="meta"))}, ValueError, "must be on cpu like the codes, got meta"),
        ({"length": 40}, ValueError, rf"codes .* \[4, 20\] for '{NVFP4}' and length 40 along axis 1, got \[4, 16\]"),
        ({"length": 34}, ValueError, r"the codes of parts must have shape \[4, 17\] .* 34 .*, got \[4, 16\]"),
        (
            {"spec": "mxfp4 1x32 nearest floor", "parts": parts()[:2]},
            TypeError,
            "must be float8_e8m0fnu, got float8_e4",
        ),
        (
            {"parts": parts(scales=torch.ones(1, 2, 32, 4, 4).to(torch.float8_e4m3fn))},
            ValueError,
            r"the block_scales of parts must have shape \[1, 1, 32, 4, 4\] .* 32 .*, got \[1, 2, 32, 4, 4\]",
        ),
        ({"axis": -3}, IndexError, "axis must be between -2 and 1 for 2 dimensions, got -3"),
        ({"spec": "nvfp4 1x17 nearest"}, ValueError, "spec must be the text of a QuantSpec, got 'nvfp4 1x17 nearest'"),
    ],
)
def test_dequantize(changed: dict[str, Any], error: type[Exception], message: str) -> None:
    given = {"parts": parts(), "spec": NVFP4, "axis": 1, "length": 32}
    DEQUANTIZE(*given.values())
    what = "" if "axis" in changed or "spec must" in message else ".*"
    assert_refused(DEQUANTIZE, list((given | changed).values()), error, f"metis::dequantize: {what}{message}")


def test_what_lives_across_steps() -> None:
    kept = torch.arange(6.0).view(3, 2)

    class Keeper:
        def load(self, site: str, part: str, shape: Any, device: torch.device) -> torch.Tensor:
            assert (site, part, list(shape), device) == ("up.weight", "activation", [3, 2], torch.device("cpu"))
            return kept

        def store(self, site: str, part: str, value: torch.Tensor) -> None:
            self.load(site, part, value.shape, value.device).copy_(value)

    state, name = handle_of(Keeper()), ("up.weight", "activation")
    found = LOAD(state, *name, [3, 2], torch.device("cpu"))
    STORE(state.clone(), torch.ones(3, 2), *name)  # what a handle holds is what counts
    assert torch.equal(found, torch.arange(6.0).view(3, 2))
    assert torch.equal(kept, torch.ones(3, 2))
    rest = [*name, [3, 2], torch.device("cpu")]
    assert_refused(LOAD, [state.float(), *rest], TypeError, "metis::load: state must be int64, got float32")
    assert_refused(
        LOAD, [state.view(1, 1), *rest], ValueError, r"metis::load: state must have the shape \[1\], got \[1, 1\]"
    )
    doubles = torch.ones(3, 2).double()
    assert_refused(STORE, [state, doubles, *name], TypeError, "metis::store_: value must be float32, got float64")
    other = handle_of(Keeper())
    gone = other.clone()
    del other
    with pytest.raises(RuntimeError, match="its handle was freed"):
        LOAD(gone, *rest)


def test_what_has_no_bfloat16() -> None:
    message = r"metis::to_bfloat16: x must be of a floating dtype, got torch\.int32"
    assert_refused(TO_BFLOAT16, [torch.ones(2).int()], TypeError, message)


def test_while_compiling() -> None:
    with pytest.raises(Exception, match=r"metis::quantize: axis must be between -2 and 1 for 2 dimensions, got 5"):
        torch.compile(lambda x: QUANTIZE(x, NVFP4, 5)[0], backend="eager", fullgraph=True)(torch.ones(4, 32))
