"""What the Triton kernels make in registers before they quantize: means and thin products subtracted, and transforms.

Sums have an order of the kernel's own. Where every order gives the same sum (of integers) bytes are those of the
numerics; elsewhere an element now and then rounds to its other neighbour.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from cross_compile import CAPABILITIES, CrossCompiled, cross_compile
from quantize_kernel import quantize_kernel
from same_bytes import assert_same_parts
from torch import Tensor

from metis_compile.conditioning import fixed_signs, hadamard, signs_from
from metis_compile.conditioning.factors import round_to_bfloat16
from metis_compile.kernels.quantize.ops import QUANTIZE_TILES, TILES_AMAX
from metis_compile.numerics import QuantSpec, decode, encode, noise_shape, uniform_noise

pytest.importorskip("triton")
SEED = torch.tensor([0x7A5B_1234_9ABC_DEF0])
NVFP4 = "nvfp4 1x16 nearest"
SPECS = [NVFP4, "nvfp4 1x16 stochastic round_up", "nvfp4 1x16 eden", "nvfp4 16x16 nearest", "mxfp4 1x32 nearest floor"]
SHAPES = [(37, 70), (48, 64), (1, 33), (16, 1040)]


class Made:
    """x, and what is taken from it and done to it; all integers unless `random`, so that sums are exact."""

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        dtype: torch.dtype = torch.float32,
        mean: bool = False,
        rank: int = 0,
        factors: torch.dtype = torch.bfloat16,
        signs: Tensor | None = None,
        random: bool = False,
    ) -> None:
        def draw(*sizes: int, most: int) -> Tensor:
            if random:
                return round_to_bfloat16(torch.randn(sizes) * most)
            return torch.randint(-most, most + 1, sizes).float()

        self.x, self.mean = draw(*shape, most=32).to(dtype), draw(1, shape[-1], most=8) if mean else None
        self.factors = (draw(shape[0], rank, most=3), draw(rank, shape[-1], most=3)) if rank else None
        self.signs, self.dtype = signs, factors

    @property
    def source(self) -> list[Tensor | None]:
        left, right = (None, None) if self.factors is None else (factor.to(self.dtype) for factor in self.factors)
        return [self.x, self.mean, left, right, self.signs]

    def value(self, axis: int) -> Tensor:
        """What is quantized along `axis`."""
        value = self.x.float()
        if self.mean is not None:
            value = value - self.mean
        if self.factors is not None:
            value = value - self.factors[0] @ self.factors[1]
        return value if self.signs is None else hadamard(value, axis, self.signs)

    def quantized(self, text: str, axes: Sequence[int]) -> list[Tensor]:
        spec = QuantSpec.parse(text)
        amax = TILES_AMAX(*self.source, axes[0]) if spec.fmt.tensor_scale else None
        seed, streams = (SEED if spec.needs_noise else None), [3] * len(axes)
        return QUANTIZE_TILES(*self.source, amax, seed, text, list(axes), streams)  # type: ignore[no-any-return]

    def expected(self, text: str, axis: int) -> list[Tensor]:
        spec, value = QuantSpec.parse(text), self.value(axis)
        noise = uniform_noise(SEED, 3, noise_shape(value.shape, spec, axis)) if spec.needs_noise else None
        return encode(value, spec, axis, noise)

    def check(self, text: str, axes: Sequence[int]) -> None:
        made, spec = self.quantized(text, axes), QuantSpec.parse(text)
        for i, axis in enumerate(axes):
            parts = [*made[2 * i : 2 * i + 2], *made[2 * len(axes) :]]
            assert_same_parts(parts, self.expected(text, axis), spec, f"{text} {tuple(self.x.shape)} axis {axis}")


@pytest.mark.parametrize("text", SPECS)
def test_a_thin_product_is_subtracted(triton_on_cpu: Any, text: str) -> None:
    ranks = itertools.cycle((5, 16, 17, 70))
    for number, (shape, rank) in enumerate(zip(SHAPES, ranks, strict=False)):
        made = Made(shape, rank=rank, mean=number % 2 == 1, dtype=(torch.bfloat16, torch.float32)[number % 2])
        made.check(text, [(1, 0), (0, 1), (1,), (0,)][number % 4])


def test_float32_factors(triton_on_cpu: Any) -> None:
    Made((37, 70), rank=18, factors=torch.float32).check(NVFP4, (1, 0))


@pytest.mark.parametrize("text", SPECS)
@pytest.mark.parametrize("axis", [0, 1])
def test_a_transform_along_the_blocks(triton_on_cpu: Any, text: str, axis: int) -> None:
    for number, (rows, columns) in enumerate([(48, 70), (16, 1040), (80, 33)]):
        shape = (rows, columns) if axis == 0 else (columns, rows)
        signs = fixed_signs() if number % 2 == 0 else signs_from(SEED)
        Made(shape, signs=signs, dtype=torch.bfloat16).check(text, (axis,))


def test_a_transform_of_a_residual(triton_on_cpu: Any) -> None:
    for axis in (0, 1):
        Made((48, 64), mean=True, rank=5, signs=fixed_signs()).check(NVFP4, (axis,))


def test_a_transform_of_batches(triton_on_cpu: Any) -> None:
    for axis in (1, 2):
        Made((3, 16, 48), signs=fixed_signs()).check(NVFP4, (axis,))


@pytest.mark.parametrize("how", [{"rank": 16}, {"rank": 9, "mean": True}, {"signs": fixed_signs()}], ids=str)
def test_sums_that_depend_on_their_order(triton_on_cpu: Any, how: dict[str, Any]) -> None:
    made = Made((64, 256), random=True, **how)
    spec, value = QuantSpec.parse(NVFP4), made.value(0)
    largest = float(value.abs().max())
    assert float(TILES_AMAX(*made.source, 0)) == pytest.approx(largest, rel=1e-6)
    actual, expected = (decode(p, spec, 0, 64) for p in (made.quantized(NVFP4, (0,)), made.expected(NVFP4, 0)))
    other = (actual - expected).abs() > 1e-6 * largest
    assert other.float().mean() < 1e-3  # of elements: those on a boundary to a millionth
    scales = expected.abs().unflatten(0, (4, 16)).amax(1, keepdim=True).expand(4, 16, 256).flatten(0, 1)
    assert ((actual - expected).abs() <= scales / 2)[other].all()  # no further than to the neighbour


@pytest.mark.parametrize(
    "how", [{"rank": 5}, {"mean": True, "rank": 5}, {"signs": fixed_signs()}, {"mean": True}, {}], ids=str
)
@pytest.mark.parametrize("axis", [0, 1])
def test_the_largest_magnitude(triton_on_cpu: Any, how: dict[str, Any], axis: int) -> None:
    for shape in ((48, 64), (16, 1040)):
        made = Made(shape, **how)
        assert float(TILES_AMAX(*made.source, axis)) == float(made.value(axis).abs().max()) > 0
    made.x.fill_(-100)
    assert float(TILES_AMAX(*made.source, axis)) == float(made.value(axis).abs().max())


@pytest.mark.parametrize("special", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays_so(triton_on_cpu: Any, special: float) -> None:
    for where in ("x", "left", "right"):
        made = Made((37, 70), rank=5)
        assert made.factors is not None
        {"x": made.x, "left": made.factors[0], "right": made.factors[1]}[where][3, 4] = special
        amax = float(TILES_AMAX(*made.source, 1))
        assert math.isnan(amax) if math.isnan(special) or where != "x" else amax == math.inf
        values = decode(made.quantized(NVFP4, (1,)), QuantSpec.parse(NVFP4), 1, 70)
        assert not values[~made.value(1).isfinite()].isfinite().any()


def test_what_lies_outside_of_the_tensor_adds_nothing(triton_on_cpu: Any) -> None:
    """Rows that are not there times an infinite factor would be NaN."""
    left, right = torch.ones(37, 5), torch.ones(5, 70)
    right[3, 4] = math.inf
    assert float(TILES_AMAX(torch.zeros(37, 70), None, left, right, None, 1)) == math.inf


def test_nothing(triton_on_cpu: Any) -> None:
    for shape in ((0, 16), (16, 0)):
        x = torch.empty(shape)
        factors = torch.empty(shape[0], 3), torch.empty(3, shape[1])
        assert float(TILES_AMAX(x, None, *factors, None, 1)) == 0
        parts = QUANTIZE_TILES(x, None, *factors, None, torch.zeros(()), None, NVFP4, [1], [0])
        assert_same_parts(parts, encode(x, QuantSpec.parse(NVFP4), 1), QuantSpec.parse(NVFP4))


LEFT, RIGHT = torch.zeros(4, 2), torch.zeros(2, 32)


@pytest.mark.parametrize(
    ("changed", "axes", "message"),
    [
        ({"left": LEFT}, [1], "left and right must be given together, got left"),
        ({"left": LEFT, "right": torch.zeros(3, 32)}, [1], r"left and right must be .*got \[4, 2\] and \[3, 32\]"),
        ({"left": LEFT, "right": RIGHT.half()}, [1], "right must be float32 or bfloat16, got float16"),
        ({"left": LEFT.T.contiguous().T, "right": RIGHT}, [1], r"left must be contiguous, got strides \(1, 4\)"),
        ({"signs": torch.ones(8)}, [1], r"signs must have 16 elements, got shape \[8\]"),
        ({"signs": torch.ones(16)}, [1, 0], r"axes must be one of the last two with signs, got \[1, 0\]"),
        ({"left": LEFT, "right": RIGHT.bfloat16()}, [1], "left and right must be of one dtype, got .*bfloat16"),
        ({"signs": torch.ones(16)}, [0], "x must have a multiple of 16 along axis 0 with signs, got 4"),
    ],
)  # fmt: skip
def test_mistakes(triton_on_cpu: Any, changed: dict[str, Tensor], axes: list[int], message: str) -> None:
    source = [torch.randn(4, 32), None, *(changed.get(name) for name in ("left", "right", "signs"))]
    with pytest.raises((TypeError, ValueError), match=f"metis::quantize_tiles: {message}"):
        QUANTIZE_TILES(*source, torch.ones(()), None, NVFP4, axes, [0] * len(axes))
    if len(axes) == 1:
        with pytest.raises((TypeError, ValueError), match=f"metis::tiles_amax: {message.replace('axes', 'axis')}"):
            TILES_AMAX(*source, axes[0])


def amax_kernel(capability: int, **constants: Any) -> CrossCompiled:
    from metis_compile.kernels.quantize import amax, tiles

    how = constants.get("RANK", 0), constants.get("HADAMARD")
    tile = tiles.tile_for(QuantSpec.parse(NVFP4), 4096, 2, *how)
    pointers = {"x": "*bf16", "mean": "*fp32", "thin_left": "*bf16", "thin_right": "*bf16", "signs": "*fp32"}
    signature = {**pointers, "out": "*fp32", **dict.fromkeys(("rows", "columns", "rank"), "i32")}
    given = {"SUBTRACT": False, "RANK": 0, "HADAMARD": None, "TILE_ROWS": tile.rows, "TILE_COLUMNS": tile.columns}
    return cross_compile(
        amax.tiles_amax_kernel,
        signature,
        {**given, **constants},
        capability,
        aligned=list(signature),
        num_warps=tile.warps,
        enable_fp_fusion=False,
    )


MULTIPLYING = {
    80: "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",
    90: "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16",
    100: "tcgen05.mma.cta_group::1.kind::f16",
    120: "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",
}


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_thin_products_compile_to_tensor_cores(capability: int) -> None:
    for built in (quantize_kernel(NVFP4, capability, "bf16", RANK=32), amax_kernel(capability, RANK=32)):
        assert MULTIPLYING[capability] in built.ptx
        assert "ld.global.v4.b32" in built.ptx
        assert built.spilled == 0


@pytest.mark.parametrize("axis", [0, 1])
def test_transforms_compile(axis: int) -> None:
    along = {"ALONG_ROWS": axis == 1, "ALONG_COLUMNS": axis == 0}
    for built in (quantize_kernel(NVFP4, 90, "bf16", HADAMARD=axis, **along), amax_kernel(90, HADAMARD=axis)):
        assert "ld.global.v4.b32" in built.ptx
        assert built.spilled == 0
