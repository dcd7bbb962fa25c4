"""Statistics of one operand beside plain torch, written out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import metis_compile
from metis_compile.numerics import QuantSpec
from metis_compile.statistics import FIELDS, operand_statistics
from metis_compile.statistics.operand import QUANTIZATION
from metis_compile.statistics.sampling import vector_numbers

# spec, contracted axis, side of a block along (axis, other)
CASES = [
    ("nvfp4 1x16 nearest", 1, (16, 1)),
    ("nvfp4 1x16 nearest", 0, (16, 1)),
    ("nvfp4 1x16 nearest 4/6-mse", 1, (16, 1)),
    ("nvfp4 16x16 nearest", 1, (16, 16)),
    ("mxfp8 1x32 nearest floor", 0, (32, 1)),
    ("mxfp4 1x32 nearest floor", 1, (32, 1)),
    ("fp8 tensor nearest", 1, None),
    ("fp8 row nearest", 1, (10**6, 1)),
    ("fp8_e5m2 128x128 nearest", 0, (128, 128)),
]
LARGEST = {"nvfp4": 6.0, "mxfp4": 6.0, "mxfp8": 448.0, "fp8": 448.0, "fp8_e5m2": 57344.0}


def operand(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Values of very different sizes, with a mean, outliers and zeros."""
    torch.manual_seed(0)
    x = torch.randn(rows, columns) * torch.exp(torch.randn(rows, columns)) + 0.3 * torch.randn(columns)
    x[3, 5], x[7] = 40.0, 0.0
    return x.to(dtype)


def by_hand(x: Tensor, text: str, axis: int, sides: tuple[int, int] | None) -> dict[str, float | None]:
    """All fields of an operand that is not split, element by element where that is the plainest."""
    spec = QuantSpec.parse(text)
    made = metis_compile.quantize(
        x, spec.format, axis, spec.block, spec.rounding, scale_mode=spec.scale_mode, select=spec.select
    )
    q, x = made.dequantize(), x.double()
    tensor_scale = 1.0 if made.tensor_scale is None else float(made.tensor_scale)
    stored = torch.ones(()) if made.block_scales is None else made.block_scales.float()
    beyond = 0
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            scale = stored
            if sides is not None:
                along, across = sides
                scale = stored[i // along, j // across] if axis == 0 else stored[i // across, j // along]
            beyond += abs(float(x[i, j])) > LARGEST[spec.format] * float(scale) * tensor_scale * (1 + 1e-6)
    largest = blocks_amax(x, axis, sides) if sides is not None else torch.ones(())
    positive = [
        s for s, m in zip(stored.flatten().tolist(), largest.flatten().tolist(), strict=True) if s > 0 and m > 0
    ]
    return {
        "amax": float(x.abs().max()),
        "underflow": float(((x != 0) & (q == 0)).sum() / (x != 0).sum()),
        "saturation": beyond / x.numel(),
        "error": float(torch.sqrt(((q - x) ** 2).sum() / (x**2).sum())),
        "scale_spread": None if sides is None else math.log2(max(positive) / min(positive)),
        "split_energy": None,
        "mean_share": float(x.shape[0] * (x.mean(0) ** 2).sum() / (x**2).sum()),
    }


def blocks_amax(x: Tensor, axis: int, sides: tuple[int, int]) -> Tensor:
    """The largest magnitude of each block, laid out as scales are."""
    rows, columns = sides if axis == 0 else sides[::-1]
    down, across = range(0, x.shape[0], rows), range(0, x.shape[1], columns)
    return torch.tensor([[float(x[i : i + rows, j : j + columns].abs().max()) for j in across] for i in down])


def check(found: dict[str, Tensor | None], wanted: dict[str, float | None]) -> None:
    assert set(wanted) <= set(found)
    for name, value in wanted.items():
        if value is None:
            assert found[name] is None, name
        else:
            assert found[name].dtype == torch.float32
            assert float(found[name]) == pytest.approx(value, rel=1e-5, abs=1e-7), name  # of float32 numbers


@pytest.mark.parametrize(("text", "axis", "sides"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_field_is_what_it_says(text: str, axis: int, sides: tuple[int, int] | None, dtype: torch.dtype) -> None:
    x = operand(40, 64, dtype)
    found = operand_statistics(x, QuantSpec.parse(text), axis)
    assert tuple(sorted(found)) == tuple(sorted(FIELDS))
    check(found, by_hand(x, text, axis, sides))


def test_something_saturates_and_underflows() -> None:
    found = operand_statistics(operand(40, 64), QuantSpec.parse("mxfp4 1x32 nearest floor"), 1)
    assert float(found["saturation"]) > 0.01
    assert float(found["underflow"]) > 0.01


def test_the_kernels_give_the_same() -> None:
    x = operand(40, 64)
    for text in ("nvfp4 1x16 nearest", "nvfp4 1x16 stochastic round_up", "fp8 tensor nearest"):
        seed = torch.tensor([5])
        plain = operand_statistics(x, QuantSpec.parse(text), 1, seed=seed, stream=2)
        assert operand_statistics(x, QuantSpec.parse(text), 1, seed=seed, stream=2, cpu_kernels=True) == plain


def test_of_a_split_the_residual_is_quantized() -> None:
    x = operand(40, 64)
    split = metis_compile.split(x, kind="mean")
    found = operand_statistics(x, QuantSpec.make("nvfp4"), 1, quantized=split.residual, is_split=True)
    q = metis_compile.quantize(split.residual, "nvfp4").dequantize()
    energy = float((x.double() ** 2).sum())
    lost = float(((q - split.residual) ** 2).sum())
    assert float(found["amax"]) == float(x.abs().max())
    assert float(found["error"]) == pytest.approx(math.sqrt(lost / energy), rel=1e-5)
    assert float(found["split_energy"]) == pytest.approx(1 - float((split.residual**2).sum()) / energy, rel=1e-4)
    assert float(found["mean_share"]) == pytest.approx(float(found["split_energy"]), rel=0.02)  # mu is in bfloat16


def test_rounding_at_random_takes_the_noise_of_its_seed_and_stream() -> None:
    x, spec = operand(40, 64), QuantSpec.make("nvfp4", rounding="stochastic")
    from metis_compile.numerics import fake_quantize, uniform_noise

    q = fake_quantize(x, spec, 1, uniform_noise(torch.tensor([7]), 3, [40, 64]))
    found = operand_statistics(x, spec, 1, seed=torch.tensor([7]), stream=3)
    assert float(found["error"]) == pytest.approx(float((q - x).norm() / x.norm()), rel=1e-5)
    assert found["error"] != operand_statistics(x, spec, 1, seed=torch.tensor([8]), stream=3)["error"]
    assert found["error"] != operand_statistics(x, spec, 1, seed=torch.tensor([7]), stream=4)["error"]


def test_what_if_is_of_the_same_tensor() -> None:
    x = operand(40, 64)
    found = operand_statistics(x, QuantSpec.make("nvfp4"), 1, what_if=("mxfp8", "nvfp4", "nvfp4 16x16 nearest"))
    for name, text in (("mxfp8", "mxfp8 1x32 nearest floor"), ("nvfp4 16x16 nearest", "nvfp4 16x16 nearest")):
        sides = (32, 1) if name == "mxfp8" else (16, 16)
        wanted = by_hand(x, text, 1, sides)
        check(found["what_if"][name], {key: wanted[key] for key in QUANTIZATION})
    assert found["what_if"]["nvfp4"]["error"] == found["error"]


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("block", ["1x16", "16x16"])
def test_a_large_operand_is_looked_at_in_part(axis: int, block: str) -> None:
    torch.manual_seed(1)
    x = torch.randn(320, 640)
    x[123, 456] = 50.0
    spec = QuantSpec.make("nvfp4", block)
    numbers = vector_numbers(x, spec, axis, 64)
    outlier = 456 if axis == 0 else 123
    size = 16 if block == "16x16" else 1
    free = x.shape[1 - axis]
    step = -(-(free // size) // (64 // size))
    groups = sorted({*range(0, free // size, step), outlier // size})
    wanted = [v for g in groups for v in range(g * size, (g + 1) * size)]
    assert numbers.tolist() == wanted
    found = operand_statistics(x, spec, axis, vectors=64)
    q = metis_compile.quantize(x, "nvfp4", axis, block).dequantize().index_select(1 - axis, numbers)
    part = x.index_select(1 - axis, numbers)
    # as it is quantized in the whole tensor: the tensor's scale is that of the outlier
    assert float(found["error"]) == pytest.approx(float((q - part).norm() / part.norm()), rel=1e-5)
    assert float(found["underflow"]) == pytest.approx(float((q == 0).float().mean()), rel=1e-5)
    assert float(found["amax"]) == 50.0
    everything = operand_statistics(x, spec, axis, vectors=None)
    assert float(everything["error"]) != float(found["error"])


def test_a_batch_of_matrices() -> None:
    torch.manual_seed(1)
    x = torch.randn(3, 24, 32)
    found = operand_statistics(x, QuantSpec.make("nvfp4"), 1, vectors=None)
    q = metis_compile.quantize(x, "nvfp4", 1).dequantize()
    assert float(found["error"]) == pytest.approx(float((q - x).norm() / x.norm()), rel=1e-5)
    assert found["mean_share"] is None


@pytest.mark.parametrize("text", ["nvfp4 1x16 nearest", "mxfp8 1x32 nearest floor", "fp8 tensor nearest"])
def test_zeros_and_what_is_not_finite(text: str) -> None:
    spec = QuantSpec.parse(text)
    zeros = operand_statistics(torch.zeros(16, 32), spec, 1)
    assert all(value is None or float(value) == 0 for value in zeros.values())
    x = torch.randn(16, 32)
    x[2, 2] = torch.nan
    assert math.isnan(float(operand_statistics(x, spec, 1)["amax"]))
    assert math.isnan(float(operand_statistics(x, spec, 1)["error"]))
    x[2, 2] = -torch.inf
    assert float(operand_statistics(x, spec, 1)["amax"]) == math.inf


def test_gradients_too_small_for_squares_in_float32() -> None:
    x = operand(16, 32) * 1e-30
    found = operand_statistics(x, QuantSpec.make("mxfp8"), 1)
    assert 0 < float(found["error"]) < 0.2
    assert 0 < float(found["mean_share"]) < 1


@pytest.mark.parametrize(
    ("what_if", "error", "text"),
    [
        (("nvpf4",), ValueError, "'nvpf4'; did you mean 'nvfp4'?"),
        (("nvfp4 9x9 nearest",), ValueError, "block"),
        ("mxfp8", TypeError, "must be a list of formats"),
    ],
)
def test_an_unknown_format_is_named(what_if: object, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text.replace("?", r"\?")):
        operand_statistics(torch.ones(16, 16), QuantSpec.make("nvfp4"), 1, what_if=what_if)  # type: ignore[arg-type]
