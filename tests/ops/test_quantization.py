"""The operators of quantization: of fake tensors they give what the numerics give of real ones, and refuse the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext, statically_known_true

from metis_compile.numerics import FORMATS, QuantSpec, encode
from metis_compile.ops.quantization import DEQUANTIZE, QUANTIZE

SHAPES = [(32, 256), (35, 50), (1, 1), (3, 20, 33), (0, 7), (7, 0)]


def specs() -> list[QuantSpec]:
    found = [QuantSpec.make("nvfp4", select="mse")]
    for name, fmt in FORMATS.items():
        found += [QuantSpec.make(name, block, rounding) for block in fmt.blocks for rounding in fmt.roundings]
    return found


def layout(t: Tensor) -> tuple[object, ...]:
    return tuple(t.shape), t.stride(), t.dtype, t.device


@pytest.mark.parametrize("spec", specs(), ids=str)
def test_fake_tensors_are_laid_out_as_real_ones(spec: QuantSpec) -> None:
    seeds = [torch.zeros(1, dtype=torch.int64)] if spec.needs_noise else []
    mode = FakeTensorMode()
    for shape in SHAPES:
        for x in (torch.randn(shape), torch.randn(shape[::-1]).bfloat16().permute(*reversed(range(len(shape))))):
            for axis in (-1, -2):
                text, length = str(spec), x.shape[axis]
                real = QUANTIZE(x, text, axis, *seeds)
                values = DEQUANTIZE(real, text, axis, length)
                with mode:
                    fake = QUANTIZE(mode.from_tensor(x), text, axis, *map(mode.from_tensor, seeds))
                    fake_values = DEQUANTIZE(fake, text, axis, length)
                assert [layout(p) for p in fake] == [layout(p) for p in real]
                assert layout(fake_values) == layout(values)
                assert values.shape == x.shape


@pytest.mark.parametrize("spec", [s for s in specs() if not s.needs_noise], ids=str)
@pytest.mark.parametrize("axis", [0, 1])
def test_symbolic_shapes_are_those_of_the_numerics(spec: QuantSpec, axis: int) -> None:
    env = ShapeEnv()
    mode = FakeTensorMode(shape_env=env)
    dynamic = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC] * 2)  # type: ignore[var-annotated]
    x = mode.from_tensor(torch.randn(80, 272), symbolic_context=dynamic)
    with mode:
        fake = QUANTIZE(x, str(spec), axis)
        assert not env.guards
        values = DEQUANTIZE(fake, str(spec), axis, x.shape[axis])
        assert not env.guards
        with enable_python_dispatcher():
            expected = encode(x, spec, axis)
    for got, want in zip([*fake, values], [*expected, x], strict=True):
        assert got.dim() == want.dim()
        assert all(statically_known_true(a == b) for a, b in zip(got.shape, want.shape, strict=True))


@pytest.mark.parametrize(
    ("shape", "dtype", "spec", "axis", "seeded"),
    [
        ((32, 32), torch.float64, "nvfp4 1x16 nearest", 1, False),
        ((32, 32), torch.int32, "mxfp8 1x32 nearest floor", 1, False),
        ((32, 32), torch.float32, "nvfp4 1x16 nearest", 2, False),
        ((4, 32, 32), torch.float32, "nvfp4 16x16 nearest", 0, False),
        ((32, 32), torch.float32, "nvfp4 1x16 stochastic round_up", 1, False),
        ((32, 32), torch.float32, "nvfp4 1x16 nearest", 1, True),
        ((32, 32), torch.float32, "nvfp5 1x16 nearest", 1, False),
    ],
)
def test_fake_tensors_are_refused_as_real_ones(
    shape: tuple[int, ...], dtype: torch.dtype, spec: str, axis: int, seeded: bool
) -> None:
    errors = []
    for mode in (torch.no_grad(), FakeTensorMode()):
        with mode, pytest.raises((TypeError, ValueError, IndexError)) as caught:
            QUANTIZE(torch.zeros(shape, dtype=dtype), spec, axis, torch.zeros(1, dtype=torch.int64) if seeded else None)
        errors.append(type(caught.value))
    assert errors[0] is errors[1]
