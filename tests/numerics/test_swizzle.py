"""Swizzled block scales: where each byte lies, and that nothing is lost."""

from __future__ import annotations

import pytest
import torch
from same_bytes import assert_same
from specs import NEAREST
from swizzled_scales import by_hand, swizzled_parts
from torch._subclasses.fake_tensor import FakeTensorMode

from metis_compile.numerics import QuantSpec, decode, encode
from metis_compile.numerics.swizzle import can_swizzle, swizzle, swizzled_shape, unswizzle
from metis_compile.ops.quantization import DEQUANTIZE, QUANTIZE

SPECS = [text for text in NEAREST if can_swizzle(QuantSpec.parse(text))]
SHAPES = [(1, 1), (37, 70), (128, 64), (130, 300), (3, 20, 50), (2, 2, 33, 17), (0, 5), (5, 0)]


def test_bytes_of_a_tile() -> None:
    """The corners of a tile, and the first byte of its neighbours."""
    scales = torch.zeros(256, 8, dtype=torch.uint8)
    places = {(0, 0): 0, (0, 3): 3, (1, 0): 16, (31, 0): 496, (32, 0): 4, (127, 3): 511, (0, 4): 512, (128, 0): 1024}
    for i, place in enumerate(places):
        scales[place] = i + 1
    flat = swizzle(scales, 1).reshape(-1)
    assert [int(flat[at]) for at in places.values()] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert int(flat.count_nonzero()) == len(places)


@pytest.mark.parametrize("text", SPECS)
@pytest.mark.parametrize("axis", [-1, -2])
def test_there_and_back(text: str, axis: int) -> None:
    spec = QuantSpec.parse(text)
    for shape in SHAPES:
        x = torch.randn(shape)
        parts = encode(x, spec, axis)
        made = swizzle(parts[1], axis)
        assert list(made.shape) == swizzled_shape(parts[1].shape, axis)
        assert made.is_contiguous()
        assert_same(made, by_hand(parts[1], axis), f"{shape}")
        assert_same(unswizzle(made, parts[1].shape, axis), parts[1], f"{shape} back")
        wanted = decode(parts, spec, axis, x.shape[axis])
        assert torch.equal(decode(swizzled_parts(parts, axis), spec, axis, x.shape[axis]), wanted)


@pytest.mark.parametrize("text", SPECS)
@pytest.mark.parametrize("axis", [-1, -2])
def test_the_operators(text: str, axis: int) -> None:
    mode = FakeTensorMode()
    for shape in SHAPES:
        x = torch.randn(shape)
        plain, made = QUANTIZE(x, text, axis), QUANTIZE(x, text, axis, swizzled=True)
        for i, (actual, wanted) in enumerate(zip(made, swizzled_parts(plain, axis), strict=True)):
            assert_same(actual, wanted, f"{shape} part {i}")
        assert torch.equal(DEQUANTIZE(made, text, axis, shape[axis]), DEQUANTIZE(plain, text, axis, shape[axis]))
        with mode:
            fake = QUANTIZE(mode.from_tensor(x), text, axis, swizzled=True)
            assert DEQUANTIZE(fake, text, axis, shape[axis]).shape == shape
        assert [(p.shape, p.dtype, p.stride()) for p in fake] == [(p.shape, p.dtype, p.stride()) for p in made]


@pytest.mark.parametrize(
    ("text", "can"),
    [
        *((text, True) for text in SPECS),
        ("nvfp4 16x16 nearest", False),
        ("fp8 1x128 nearest", False),
        ("fp8 row nearest", False),
        ("fp8 tensor nearest", False),
    ],
)
def test_which_formats_have_them(text: str, can: bool) -> None:
    assert can_swizzle(QuantSpec.parse(text)) == can
