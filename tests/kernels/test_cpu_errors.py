"""What the CPU operators refuse, before a C++ kernel misreads it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from refusals import assert_refused
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

from metis_compile.kernels.cpu import ops
from metis_compile.numerics import QuantSpec, encode

NVFP4, MXFP8 = "nvfp4 1x16 nearest", "mxfp8 1x32 nearest floor"
X, ONE, SEED = torch.ones(4, 32), torch.ones(()), torch.tensor([1])
META = torch.ones((), device="meta")


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"x": X.double()}, TypeError, "x must be float32, bfloat16 or float16, got float64"),
        ({"x": X.int()}, TypeError, "x must be float32, bfloat16 or float16, got int32"),
        ({"axis": 2}, IndexError, "axis must be between -2 and 1 for 2 dimensions, got 2"),
        ({"spec": "nvfp5 1x16 nearest"}, ValueError, "spec must be the text of a QuantSpec, got 'nvfp5 1x16 nearest'"),
        ({"given": [ONE]}, ValueError, f"given must be .enc, dec. for '{NVFP4}', got 1 tensors"),
        ({"given": [ONE, ONE, SEED]}, ValueError, f"given must be .enc, dec. for '{NVFP4}', got 3 tensors"),
        ({"spec": "nvfp4 1x16 stochastic none"}, ValueError, "given must be .enc, dec, seed. for .*, got 2 tensors"),
        ({"given": [ONE.double(), ONE]}, TypeError, "enc of given must be float32, got float64"),
        ({"given": [ONE, torch.ones(1)]}, ValueError, r"dec of given must have shape \[\], got \[1\]"),
        ({"given": [ONE, META]}, ValueError, "dec of given must be on cpu like x, got meta"),
        ({"spec": "mxfp8 1x32 stochastic none floor", "given": [ONE]}, TypeError, "seed must be int64, got float32"),
        ({"stream": -2}, ValueError, r"stream must be at least 0 and less than 2\^31, got -2"),
    ],
)
def test_values_and_parts(changed: dict[str, Any], error: type[Exception], message: str) -> None:
    given = {"x": X, "given": [ONE, ONE], "spec": NVFP4, "axis": 1, "stream": 0} | changed
    assert_refused(ops.CPU_VALUES, [*given.values(), False], error, f"metis::cpu_values: {message}")
    assert_refused(ops.CPU_PARTS, list(given.values()), error, f"metis::cpu_parts: {message}")


def test_what_bfloat16_cannot_hold() -> None:
    message = "exact must be False for 'fp8 row nearest', whose values bfloat16 can't hold, got True"
    assert_refused(ops.CPU_VALUES, [X, [], "fp8 row nearest", 1, 0, True], ValueError, f"metis::cpu_values: {message}")
    parts = encode(X, QuantSpec.parse("fp8 row nearest"), 1)
    given = [parts, "fp8 row nearest", 1, 32, True]
    assert_refused(ops.CPU_DECODE, given, ValueError, f"metis::cpu_decode: {message}")


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"parts": []}, ValueError, r"parts of 'mxfp8 1x32 nearest floor' must be \[codes, block_scales\], got 0"),
        ({"length": 33}, ValueError, r"the codes of parts must have shape \[4, 33\] .*, got \[4, 32\]"),
        ({"axis": 0, "length": 4}, ValueError, r"the block_scales of parts must have shape \[1, 32\] .*, got \[4, 1\]"),
        ({"axis": 3}, IndexError, "axis must be between -2 and 1 for 2 dimensions, got 3"),
        ({"spec": "mxfp8"}, ValueError, "spec must be the text of a QuantSpec, got 'mxfp8'"),
    ],
)
def test_decode(changed: dict[str, Any], error: type[Exception], message: str) -> None:
    parts = encode(X, QuantSpec.parse(MXFP8), 1)
    given = {"parts": parts, "spec": MXFP8, "axis": 1, "length": 32, "exact": False} | changed
    assert_refused(ops.CPU_DECODE, list(given.values()), error, f"metis::cpu_decode: {message}")


def test_tensor_scale() -> None:
    op, name = ops.CPU_TENSOR_SCALE, "metis::cpu_tensor_scale"
    assert_refused(op, [X.double(), 1.0], TypeError, f"{name}: x must be float32, bfloat16 or float16, got float64")
    assert_refused(op, [X, 0.0], ValueError, rf"{name}: target must be above 0, got 0\.0")


A, B = torch.ones(4, 8).bfloat16(), torch.ones(8, 3).bfloat16()


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"a": A.double()}, TypeError, "a must be bfloat16, got float64"),
        ({"b": B.float()}, TypeError, "b must be bfloat16, got float32"),
        ({"b": B.to("meta")}, ValueError, "b must be on cpu like a, got meta"),
        ({"b": torch.ones(9, 3).bfloat16()}, ValueError, r"a and b must be .*, k, n\], got \[4, 8\] and \[9, 3\]"),
        ({"b": B[None]}, ValueError, r"a and b must be .* got \[4, 8\] and \[1, 8, 3\]"),
        ({"a": A[None].expand(2, 4, 8), "b": B[None]}, ValueError, r"a and b must .* \[2, 4, 8\] and \[1, 8, 3\]"),
        ({"a": A[0]}, ValueError, r"a and b must be \[..., m, k\] and \[..., k, n\], got \[8\] and \[8, 3\]"),
        ({"decs": [ONE] * 3}, ValueError, "decs must be at most 2, got 3"),
        ({"decs": [torch.ones(1)]}, ValueError, r"decs\[0\] must have shape \[\], got \[1\]"),
        ({"decs": [ONE, ONE.bfloat16()]}, TypeError, r"decs\[1\] must be float32, got bfloat16"),
        ({"decs": [META]}, ValueError, r"decs\[0\] must be on cpu like a, got meta"),
        ({"tails": [torch.ones(4, 2)]}, ValueError, "tails must be pairs of left and right, got 1 tensors"),
        (
            {"tails": [torch.ones(4, 2), torch.ones(3, 3)]},
            ValueError,
            r"tail 0 must be \[4, r\] and \[r, 3\], got \[4, 2\] and \[3, 3\]",
        ),
        (
            {"tails": [torch.ones(4, 2), torch.ones(2, 3).half()]},
            TypeError,
            "the right of tail 0 must be float32 or bfloat16, got float16",
        ),
        (
            {"tails": [torch.ones(4, 2, device="meta"), torch.ones(2, 3)]},
            ValueError,
            "the left of tail 0 must be on cpu like a, got meta",
        ),
        (
            {"a": A[None], "b": B[None], "tails": [torch.ones(4, 2), torch.ones(2, 3)]},
            ValueError,
            "tails must be empty for batches of matrices, got 1",
        ),
        ({"bias": torch.ones(3)}, ValueError, r"bias must be None without tails, .*, got \[3\]"),
        ({"bias": torch.ones(4)}, ValueError, r"bias must have shape \[3\], got \[4\]"),
        ({"added": torch.ones(3)}, ValueError, r"added must have shape \[4, 3\], got \[3\]"),
        ({"added": torch.ones(4, 3).double()}, TypeError, "added must be float32, got float64"),
        ({"added": torch.ones(4, 3, device="meta")}, ValueError, "added must be on cpu like a, got meta"),
    ],
)
def test_product(changed: dict[str, Any], error: type[Exception], message: str) -> None:
    given = {"a": A, "b": B, "decs": [], "tails": [], "bias": None, "added": None} | changed
    assert_refused(ops.CPU_PRODUCT, list(given.values()), error, f"metis::cpu_product: {message}")


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"x": X.bfloat16()}, TypeError, "x must be float32, got bfloat16"),
        ({"x": X[0]}, ValueError, r"x must be a matrix, got shape \[32\]"),
        ({"left": torch.ones(4, 2).half()}, TypeError, "left must be float32 or bfloat16, got float16"),
        ({"right": torch.ones(2, 32).double()}, TypeError, "right must be float32 or bfloat16, got float64"),
        ({"right": torch.ones(3, 32)}, ValueError, r"left and right must be \[4, r\] and \[r, 32\], got .* \[3, 32\]"),
        ({"left": torch.ones(4, 2, device="meta")}, ValueError, "left must be on cpu like x, got meta"),
    ],
)
def test_thin_sum(changed: dict[str, Tensor], error: type[Exception], message: str) -> None:
    given = {"x": X, "left": torch.ones(4, 2), "right": torch.ones(2, 32)} | changed
    assert_refused(ops.CPU_THIN_SUM, [*given.values(), 1.0], error, f"metis::cpu_thin_sum: {message}")


def test_cast_and_cat() -> None:
    dtypes = "float32, bfloat16 or float16, got"
    assert_refused(ops.CPU_CAST, [X.int(), torch.float32], TypeError, f"metis::cpu_cast: x must be {dtypes} int32")
    message = rf"metis::cpu_cast: dtype must be {dtypes} torch\.int32"
    assert_refused(ops.CPU_CAST, [X, torch.int32], TypeError, message)
    name = "metis::cpu_cat: "
    assert_refused(ops.CPU_CAT, [[], 0], ValueError, f"{name}parts must be at least one tensor, got none")
    assert_refused(ops.CPU_CAT, [[X, X.half()], 0], TypeError, rf"{name}parts\[1\] must be float32, got float16")
    message = rf"{name}parts\[1\] must have shape \[4, 8\], got \[3, 8\]"
    assert_refused(ops.CPU_CAT, [[X, torch.ones(3, 8)], 1], ValueError, message)
    message = rf"{name}parts\[1\] must have shape \[4, 32\], got \[4\]"
    assert_refused(ops.CPU_CAT, [[X, torch.ones(4)], 1], ValueError, message)
    message = rf"{name}parts\[1\] must be on cpu like parts\[0\], got meta"
    assert_refused(ops.CPU_CAT, [[X, X.to("meta")], 0], ValueError, message)
    assert_refused(ops.CPU_CAT, [[X], 2], IndexError, f"{name}axis must be between -2 and 1 for 2 dimensions, got 2")


def test_another_device_is_refused_while_tracing() -> None:
    parts = encode(X, QuantSpec.parse(MXFP8), 1)
    calls: dict[str, list[Any]] = {
        "cpu_tensor_scale": [X, 1.0],
        "cpu_values": [X, [ONE, ONE], NVFP4, 1, 0, False],
        "cpu_parts": [X, [ONE, ONE], NVFP4, 1, 0],
        "cpu_decode": [parts, MXFP8, 1, 32, False],
        "cpu_thin_sum": [X, torch.ones(4, 2), torch.ones(2, 32), 1.0],
        "cpu_product": [A, B, [], []],
        "cpu_grouped": [A, B, torch.tensor([1, 2]), []],
        "cpu_cast": [X, torch.bfloat16],
        "cpu_cat": [[X, X], 0],
    }
    assert {f"CPU_{name.removeprefix('cpu_').upper()}" for name in calls} == set(ops.__all__)
    mode = FakeTensorMode()
    for name, given in calls.items():
        with mode:
            moved = tree_map_only(Tensor, lambda t: torch.empty(t.shape, dtype=t.dtype, device="cuda:0"), given)
            with pytest.raises(ValueError, match=rf"metis::{name}: [\w\[\]]+ must be on the CPU, got cuda:0"):
                getattr(torch.ops.metis, name)(*moved)


def test_joined_behind_the_last() -> None:
    assert torch.equal(ops.CPU_CAT([X, 2 * X], -1), torch.cat([X, 2 * X], -1))
