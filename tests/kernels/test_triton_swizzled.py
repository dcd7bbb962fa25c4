"""The Triton quantize kernel writes swizzled scales: the bytes of the numerics, rearranged, and zeros around them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import value_families
from quantize_kernel import quantize_kernel
from refusals import assert_refused
from same_bytes import assert_same_parts
from specs import SWIZZLED as SPECS
from swizzled_scales import swizzled_parts
from torch import Tensor

from metis_compile.kernels.quantize.ops import QUANTIZE_TILES, QUANTIZE_TILES_INTO
from metis_compile.numerics import QuantSpec, encode, noise_shape, uniform_noise

pytest.importorskip("triton")

SHAPES = [(37, 70), (128, 128), (1, 33), (130, 7), (3, 20, 50), (257, 128), (64, 530), (2, 3, 17, 40)]
# along which blocks lie, and of these where scales are swizzled
AXES: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
    ((-1, -2), (-1, -2)),
    ((-2, -1), (-1,)),
    ((-1, -2), (-2,)),
    ((-1,), (-1,)),
    ((-2,), (-2,)),
]
SEED = torch.tensor([0x7A5B_1234_9ABC_DEF0])
NOTHING_ELSE = (None, None, None)  # factors and signs


def given(x: Tensor, spec: QuantSpec, mean: Tensor | None) -> list[Any]:
    centered = x.float() if mean is None else x.float() - mean
    amax = (centered.abs().amax() if x.numel() else torch.zeros(())) if spec.fmt.tensor_scale else None
    return [x, mean, *NOTHING_ELSE, amax, SEED if spec.needs_noise else None]


def expected(
    value: Tensor, spec: QuantSpec, axes: Sequence[int], streams: Sequence[int], swizzled: Sequence[int]
) -> list[Tensor]:
    found = []
    for axis, stream in zip(axes, streams, strict=True):
        noise = uniform_noise(SEED, stream, noise_shape(value.shape, spec, axis)) if spec.needs_noise else None
        parts = encode(value, spec, axis, noise)
        found += (swizzled_parts(parts, axis) if axis in swizzled else parts)[:2]
    return found + parts[2:]


@pytest.mark.parametrize("text", SPECS)
@pytest.mark.parametrize(("axes", "swizzled"), AXES, ids=str)
def test_bytes_are_those_of_the_numerics(
    triton_on_cpu: Any, long: bool, text: str, axes: tuple[int, ...], swizzled: tuple[int, ...]
) -> None:
    """Of every fourth shape, others for the next spec; of all of them in the long tail."""
    spec, first = QuantSpec.parse(text), SPECS.index(text) + AXES.index((axes, swizzled))
    streams = range(3, 3 + len(axes))
    for number, (family, shape) in enumerate(zip(itertools.cycle(value_families.FAMILIES), SHAPES, strict=False)):
        if not long and (number + first) % 4 != 0:
            continue
        x = torch.from_numpy(value_families.draw(family, number, shape))
        made = QUANTIZE_TILES(*given(x, spec, None), text, list(axes), list(streams), list(swizzled))
        wanted = expected(x, spec, axes, streams, swizzled)
        for i in range(len(axes)):
            parts = [[*p[2 * i : 2 * i + 2], *p[2 * len(axes) :]] for p in (made, wanted)]
            assert_same_parts(*parts, spec, f"{family} {shape} axis {axes[i]} of {axes}, swizzled {swizzled}")


@pytest.mark.parametrize("text", ["nvfp4 1x16 nearest", "mxfp8 1x32 nearest floor"])
@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (3, 0, 4)])
def test_nothing(triton_on_cpu: Any, text: str, shape: tuple[int, ...]) -> None:
    spec, x = QuantSpec.parse(text), torch.empty(shape)
    made = QUANTIZE_TILES(*given(x, spec, None), text, [-1, -2], [0, 0], [-1, -2])
    for actual, wanted in zip(made, expected(x, spec, (-1, -2), (0, 0), (-1, -2)), strict=True):
        assert (actual.shape, actual.dtype) == (wanted.shape, wanted.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_made_in_registers(triton_on_cpu: Any, dtype: torch.dtype) -> None:
    """A row, and a thin product of integers, whose sums are the same in every order."""
    text = "nvfp4 1x16 nearest"
    spec = QuantSpec.parse(text)

    def draw(*shape: int) -> Tensor:
        return torch.randint(-3, 4, shape).float()

    x, mean, left, right = draw(133, 70), draw(1, 70), draw(133, 5), draw(5, 70)
    for source, value in (
        ([x, mean, *NOTHING_ELSE], x - mean),
        ([x, mean, left, right, None], x - mean - left @ right),
    ):
        stored = [None if t is None else t.to(dtype) if t is not mean else t for t in source]
        made = QUANTIZE_TILES(*stored, value.abs().amax(), None, text, [1, 0], [0, 0], [1, 0])
        wanted = expected(value, spec, (1, 0), (0, 0), (1, 0))
        for i in range(2):
            parts = [[*p[2 * i : 2 * i + 2], p[-1]] for p in (made, wanted)]
            assert_same_parts(*parts, spec, f"axis {1 - i}")


@pytest.mark.parametrize("text", SPECS)
def test_every_byte_is_written_and_nothing_else(triton_on_cpu: Any, text: str) -> None:
    spec, x = QuantSpec.parse(text), torch.randn(37, 75)
    how = [text, [1, 0], [3, 4], [0, 1]]
    wanted = expected(x, spec, (1, 0), (3, 4), (0, 1))
    for fill in (0x00, 0xFF):
        buffers = [torch.full((part.nbytes + 128,), fill, dtype=torch.uint8) for part in wanted]
        out = [b[64:-64].view(p.dtype).view(p.shape) for b, p in zip(buffers, wanted, strict=True)]
        QUANTIZE_TILES_INTO(*given(x, spec, None), out, *how)
        for actual, part, buffer in zip(out, wanted, buffers, strict=True):
            assert torch.equal(actual.reshape(-1).view(torch.uint8), part.reshape(-1).view(torch.uint8))
            assert (buffer[:64] == fill).all()
            assert (buffer[-64:] == fill).all()


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"swizzled": [0]}, ValueError, r"swizzled must be among axes \[1\], got \[0\]"),
        ({"swizzled": [1, -1]}, ValueError, r"swizzled must be among axes \[1\], got \[1, -1\]"),
        ({"swizzled": [2]}, IndexError, "axis must be between -2 and 1 for 2 dimensions, got 2"),
        (
            {"spec": "nvfp4 16x16 nearest"},
            ValueError,
            r"swizzled must be for 1x16 or 1x32 blocks, got \[1\] for 'nvfp4 16x16 nearest'",
        ),
        (
            {"spec": "fp8 1x128 nearest", "amax": None},
            ValueError,
            r"swizzled must be for 1x16 or 1x32 blocks, got \[1\] for 'fp8 1x128 nearest'",
        ),
        (
            {"x": torch.ones(2, 4, 32), "axes": [0], "swizzled": [0]},
            ValueError,
            r"swizzled must be for one of the last two of 3 dimensions, got \[0\]",
        ),
        (
            {"x": torch.ones(32), "axes": [0], "swizzled": [0]},
            ValueError,
            r"swizzled must be for one of the last two of 1 dimensions, got \[0\]",
        ),
    ],
)
def test_mistakes(triton_on_cpu: Any, changed: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"x": torch.ones(4, 32), **dict.fromkeys(("mean", "left", "right", "signs")), "amax": torch.ones(())}
    arguments |= {"seed": None, "spec": "nvfp4 1x16 nearest", "axes": [1], "streams": [0], "swizzled": [1]}
    QUANTIZE_TILES(*arguments.values())
    arguments |= changed
    assert_refused(QUANTIZE_TILES, list(arguments.values()), error, f"metis::quantize_tiles: {message}")


def test_what_is_written_has_room(triton_on_cpu: Any) -> None:
    x, how = torch.ones(4, 32), ["nvfp4 1x16 nearest", [1], [0]]
    source = [x, None, *NOTHING_ELSE, torch.ones(()), None]
    out = QUANTIZE_TILES(*source, *how)
    message = r"metis::quantize_tiles_into: out\[1\] must have shape \[1, 1, 32, 4, 4\], got \[4, 2\]"
    assert_refused(QUANTIZE_TILES_INTO, [*source, out, *how, [1]], ValueError, message)


@pytest.mark.parametrize("text", ["nvfp4 1x16 nearest", "mxfp8 1x32 nearest floor"])
def test_compiles_without_a_gpu(text: str) -> None:
    built = quantize_kernel(text, 100, "bf16", ROW_SWIZZLED=True, COLUMN_SWIZZLED=True)
    assert "ld.global.v4.b32" in built.ptx
    assert built.spilled == 0
