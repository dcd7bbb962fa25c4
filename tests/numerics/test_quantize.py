"""quantize against a NumPy reference that loops over blocks: codes, scales and values, bit for bit."""

from __future__ import annotations

import numpy as np
import numpy_reference
import pytest
import torch
import value_families
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from specs import ALL

from metis_compile.numerics import FORMATS, QuantizedTensor, QuantSpec, fake_quantize, noise_shape, quantize

SPECS = ALL
IDS = [str(s).replace(" ", "-") for s in SPECS]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

quick = settings(
    max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
seeds = st.integers(0, 2**32 - 1)


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, ...]:
    """1 to 4 dimensions, often odd, sometimes empty, mostly one long enough for several blocks."""
    ndim = draw(st.integers(1, 4))
    sizes = [draw(st.sampled_from([0, 1, 2, 3, 3, 5])) for _ in range(ndim)]
    for _ in range(draw(st.integers(0, 2))):
        sizes[draw(st.integers(0, ndim - 1))] = draw(st.sampled_from([15, 16, 17, 32, 33, 47, 64]))
    if np.prod(sizes) > 3000:
        sizes = sizes[-2:]
    return tuple(sizes)


def restride(x: torch.Tensor, how: str) -> torch.Tensor:
    """The same values with other strides."""
    if how == "transposed":
        return x.movedim(0, -1).contiguous().movedim(-1, 0)
    if how == "stepped":
        return torch.stack([x, torch.full_like(x, torch.nan)], -1)[..., 0]
    if how == "offset":
        return torch.cat([torch.full_like(x, torch.nan), x], 0)[x.shape[0] :]
    return x


def bits(x: torch.Tensor) -> np.ndarray:
    return x.contiguous().reshape(-1).view(torch.uint8).numpy()


def assert_same(got: QuantizedTensor, want: numpy_reference.Quantized) -> None:
    np.testing.assert_array_equal(got.codes.numpy(), want.codes)
    assert (got.block_scales is None) == (want.scales is None)
    if got.block_scales is not None and want.scales is not None:
        assert tuple(got.block_scales.shape) == want.scales.shape
        assert bits(got.block_scales).tobytes() == want.scales.tobytes()
    assert (got.tensor_scale is None) == (want.tensor_scale is None)
    if got.tensor_scale is not None and want.tensor_scale is not None:
        assert got.tensor_scale.shape == ()
        assert bits(got.tensor_scale).tobytes() == want.tensor_scale.tobytes()
    assert bits(got.dequantize()).tobytes() == want.values.tobytes()


@pytest.mark.parametrize("spec", SPECS, ids=IDS)
@quick
@given(
    shape=shapes(),
    axis=st.integers(-4, 3),
    family=st.sampled_from(sorted(value_families.FAMILIES)),
    dtype=st.sampled_from(DTYPES),
    strides=st.sampled_from(["contiguous", "transposed", "stepped", "offset"]),
    seed=seeds,
)
def test_matches_the_reference(
    spec: QuantSpec, shape: tuple[int, ...], axis: int, family: str, dtype: torch.dtype, strides: str, seed: int
) -> None:
    if spec.block in ("16x16", "128x128"):
        shape = shape if len(shape) > 1 else (3, *shape)
        axis = axis % 2 - 2
    else:
        axis = axis % len(shape) - (len(shape) if axis < 0 else 0)
    x = torch.from_numpy(value_families.draw(family, seed, shape)).to(dtype).nan_to_num(posinf=6e4, neginf=-6e4)
    drawn = torch.rand(noise_shape(shape, spec, axis), generator=torch.Generator().manual_seed(seed))
    noise = drawn if spec.needs_noise else None
    got = quantize(
        restride(x, strides),
        spec.format,
        axis,
        spec.block,
        spec.rounding,
        guard=spec.guard,
        scale_mode=spec.scale_mode,
        select=spec.select,
        noise=None if noise is None else restride(noise, strides),
    )
    want = numpy_reference.quantize(
        x.float().numpy(),
        spec.format,
        spec.block,
        axis,
        rounding=spec.rounding,
        guard=spec.guard,
        scale_mode=spec.scale_mode,
        select=spec.select,
        noise=None if noise is None else noise.numpy(),
    )
    assert got.spec == spec
    assert (got.shape, got.dtype, got.axis) == (shape, dtype, axis % len(shape))
    assert_same(got, want)
    assert bits(fake_quantize(x, spec, axis, noise)).tobytes() == want.values.tobytes()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("special", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_what_is_not_finite_stays_so(format: str, special: float, rounding: str) -> None:
    for block in FORMATS[format].blocks:
        x = torch.randn(40, 70)
        x[3, 50] = special
        quantized = quantize(x, format, -1, block, rounding)
        values = quantized.dequantize()
        assert not values[3, 50].isfinite()
        if quantized.spec.fmt.scale == "e8m0":  # the byte 255 for that block, and no other block is touched
            assert quantized.block_scales is not None
            assert quantized.block_scales.view(torch.uint8)[3].tolist()[1] == 255
            assert (values.isnan().sum(), values.isinf().sum()) == (32, 0)


@pytest.mark.parametrize("format", ["fp8", "fp8_e5m2", "mxfp8", "mxfp8_e5m2"])
@pytest.mark.parametrize("special", [float("nan"), -float("nan"), float("inf"), -float("inf")])
def test_the_code_of_a_nan_has_no_sign(format: str, special: float) -> None:
    x = torch.ones(40, 160)
    x[1::2] = -1
    x[:, 5] = torch.tensor(special)
    for block in FORMATS[format].blocks:
        quantized = quantize(x, format, -1, block)
        codes = quantized.codes.view(quantized.spec.element.dtype)
        assert (quantized.codes[codes.isnan()] == 0x7F).all()
        assert codes.isnan().any()


def test_a_scale_that_is_nan_has_no_sign() -> None:
    for special in (float("nan"), -float("nan"), float("inf"), -float("inf")):
        scales = quantize(torch.full((2, 32), special), "nvfp4").block_scales
        assert scales is not None
        assert scales.view(torch.uint8).unique().tolist() == [0x7F]


def test_codes_are_packed_along_the_axis_low_nibble_first() -> None:
    x = torch.tensor([[6.0, -0.5, 4.0], [1.0, -0.0, 3.0]])
    assert quantize(x, "mxfp4", axis=1).codes.tolist() == [[0x97, 0x06], [0x84, 0x07]]
    assert quantize(x, "mxfp4", axis=0).codes.tolist() == [[0x27, 0x8E, 0x56]]


@pytest.mark.parametrize(("format", "block", "nbytes"), [
    ("nvfp4", "1x16", 64 * 64 // 2 + 64 * 4 + 4),
    ("nvfp4", "16x16", 64 * 64 // 2 + 4 * 4 + 4),
    ("mxfp4", "1x32", 64 * 64 // 2 + 64 * 2),
    ("mxfp8", "1x32", 64 * 64 + 64 * 2),
    ("fp8", "tensor", 64 * 64 + 4),
    ("fp8", "row", 64 * 64 + 64 * 4),
    ("fp8", "128x128", 64 * 64 + 4),
])  # fmt: skip
def test_nbytes_is_what_is_stored(format: str, block: str, nbytes: int) -> None:
    x = torch.randn(64, 64)
    quantized = quantize(x, format, block=block)
    assert quantized.nbytes == nbytes
    if block not in ("tensor", "row", "128x128"):
        per_tensor = 4 if quantized.tensor_scale is not None else 0
        assert (nbytes - per_tensor) * 8 / x.numel() == quantized.spec.bits_per_element


def test_square_blocks_do_not_depend_on_the_axis() -> None:
    x = torch.randn(40, 50)
    for format, block in [("nvfp4", "16x16"), ("fp8", "128x128"), ("fp8", "tensor")]:
        spec = QuantSpec.make(format, block)
        assert spec.orientation_free
        assert torch.equal(fake_quantize(x, spec, 0), fake_quantize(x, spec, 1))
        assert torch.equal(fake_quantize(x.T, spec, 0).T, fake_quantize(x, spec, 1))
    spec = QuantSpec.make("nvfp4")
    assert not spec.orientation_free
    assert not torch.equal(fake_quantize(x, spec, 0), fake_quantize(x, spec, 1))


def test_no_gradient_flows_and_none_is_needed() -> None:
    x = torch.randn(4, 32, requires_grad=True)
    assert not quantize(x).dequantize().requires_grad
    assert not fake_quantize(x, QuantSpec.make("fp8"), -1).requires_grad


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_are_cast_last(dtype: torch.dtype) -> None:
    x = torch.randn(8, 40)
    quantized = quantize(x)
    assert torch.equal(quantized.dequantize(dtype), quantized.dequantize().to(dtype))
    assert torch.equal(fake_quantize(x, quantized.spec, -1, dtype=dtype), quantized.dequantize(dtype))


@pytest.mark.parametrize("rounding", ["stochastic", "eden"])
def test_noise_comes_from_torch_or_from_the_generator(rounding: str) -> None:
    x = torch.randn(8, 64)

    def values(generator: torch.Generator | None = None) -> torch.Tensor:
        return quantize(x, rounding=rounding, generator=generator).dequantize()

    torch.manual_seed(1)
    first, second = values(), values()
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    assert torch.equal(values(), first)
    state = torch.get_rng_state()
    assert torch.equal(values(torch.Generator().manual_seed(1)), first)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"format": "nvpf4"}, ValueError, "format must be one of .* got 'nvpf4'; did you mean 'nvfp4'"),
        ({"block": "1x32"}, ValueError, "block of nvfp4 must be one of '1x16', '16x16', got '1x32'"),
        ({"rounding": "stocastic"}, ValueError, "did you mean 'stochastic'"),
        ({"guard": "round_up"}, ValueError, "guard must be None when rounding is 'nearest', got 'round_up'"),
        ({"rounding": "stochastic", "guard": "16/17"}, ValueError, "got '16/17'; did you mean '17/16'"),
        ({"scale_mode": "floor"}, ValueError, "scale_mode must be None for nvfp4"),
        ({"rounding": "eden", "guard": "17/16"}, ValueError, "guard must be None when rounding is 'eden', got '17/16'"),
        ({"rounding": "eden", "select": "mse"}, ValueError, "select must be None when rounding is 'eden', got 'mse'"),
        ({"format": "fp8", "rounding": "eden"}, ValueError, "rounding of fp8 must be one of 'nearest', 'stochastic'"),
        (
            {"rounding": "eden", "noise": torch.zeros(4, 4)},
            ValueError,
            r"the block scales' shape \(4, 1\), got \(4, 4\)",
        ),
        ({"format": "mxfp4", "scale_mode": "ceil"}, ValueError, "did you mean 'rceil'"),
        (
            {"select": "mes"},
            ValueError,
            "select of nearest nvfp4 must be one of 'mse', 'mae', got 'mes'; did you mean 'mse'",
        ),
        ({"select": "expected"}, ValueError, "must be one of 'mse', 'mae', got 'expected'"),
        ({"rounding": "stochastic", "select": "mse"}, ValueError, "must be one of 'expected', got 'mse'"),
        ({"format": "mxfp4", "select": "mse"}, ValueError, "select must be None for mxfp4, got 'mse'"),
        ({"axis": 2}, IndexError, "axis must be between -2 and 1 for 2 dimensions, got 2"),
        ({"axis": -3}, IndexError, "axis must be between -2 and 1 for 2 dimensions, got -3"),
        ({"x": torch.zeros(3, 4, 5), "block": "16x16", "axis": 0}, ValueError, "axis must be one of the last two"),
        ({"x": torch.zeros(()), "axis": 0}, IndexError, "at least one dimension"),
        ({"x": torch.zeros(4, 4, dtype=torch.float64)}, TypeError, "got torch.float64"),
        ({"x": torch.zeros(4, 4, dtype=torch.int32)}, TypeError, "got torch.int32"),
        ({"x": torch.zeros(4, 4, dtype=torch.complex64)}, TypeError, "got torch.complex64"),
        ({"noise": torch.zeros(4, 4)}, ValueError, "noise must be None when rounding is 'nearest'"),
        ({"rounding": "stochastic", "noise": torch.zeros(4, 5)}, ValueError, r"x's shape \(4, 4\), got \(4, 5\)"),
        ({"rounding": "stochastic", "noise": torch.zeros(16)}, ValueError, r"x's shape \(4, 4\), got \(16,\)"),
        ({"rounding": "stochastic", "noise": torch.zeros(4, 4).double()}, ValueError, "noise must be float32"),
        ({"generator": torch.Generator()}, ValueError, "generator must be None unless"),
    ],
)
def test_mistakes_say_what_was_wrong(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        quantize(**{"x": torch.zeros(4, 4), **arguments})


@pytest.mark.parametrize("rounding", ["stochastic", "eden"])
def test_rounding_at_random_without_noise_is_refused_below_quantize(rounding: str) -> None:
    with pytest.raises(ValueError, match=f"noise must be given when rounding is '{rounding}'"):
        fake_quantize(torch.zeros(4), QuantSpec.make("nvfp4", rounding=rounding), 0)
