"""The numerics under torch.compile, on fake tensors and with symbolic sizes: the same bits, no guard on each length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from long_tail import sampled
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch._inductor.utils import run_and_get_code
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from metis_compile.numerics import (
    FORMATS,
    QuantizedTensor,
    QuantSpec,
    decode,
    encode,
    fake_quantize,
    materialize,
    materializing,
    quantize,
)


def assert_same_bits(got: Sequence[Tensor], want: Sequence[Tensor]) -> None:
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        if a.dtype == torch.float32:
            assert torch.equal(a.isnan(), b.isnan())
            a, b = (t.masked_fill(t.isnan(), 1.0).contiguous() for t in (a, b))
        assert torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


def with_edges(*shape: int) -> Tensor:
    """Random values with zeros of both signs, subnormals, large magnitudes and an all-zero block."""
    x = torch.randn(*shape)
    x[0, :] = 0.0
    x[1, 1::2] = -0.0
    x[2, :7] = torch.tensor([1e-40, -1e-44, 3e-39, 1e-30, -1e-20, 5.0, -1e3])
    x[3] *= 1e4
    return x


def every_kernel(x: Tensor, ragged: Tensor, noise: Tensor) -> list[Tensor]:
    """What Inductor compiles differently: both axes, a short last block, drawn rounding, each kind of scale."""
    nvfp4 = QuantSpec.make("nvfp4")
    stochastic = QuantSpec.make("nvfp4", "16x16", "stochastic")
    mxfp8 = QuantSpec.make("mxfp8", scale_mode="even")
    parts = encode(x, nvfp4, 0) + encode(ragged, mxfp8, -1)
    return [
        *parts,
        decode(parts[:3], nvfp4, 0, x.shape[0]),
        decode(parts[3:], mxfp8, -1, ragged.shape[1]),
        fake_quantize(x, nvfp4, -1),
        fake_quantize(x, stochastic, 0, noise),
    ]


def test_inductor_gives_the_same_bits() -> None:
    compiled = torch.compile(every_kernel, fullgraph=True)
    x, ragged, noise = with_edges(64, 96), with_edges(37, 41), torch.rand(64, 96)
    assert_same_bits(compiled(x, ragged, noise), every_kernel(x, ragged, noise))
    for special in (torch.nan, torch.inf, -torch.inf):
        broken, broken_ragged = x.clone(), ragged.clone()
        broken[5, 7] = broken_ragged[36, 40] = special
        got, want = (f(broken, broken_ragged, noise) for f in (compiled, every_kernel))
        assert_same_bits(got[4:], want[4:])  # of a NaN, codes and E4M3 scales may have either sign
        for values in got[5:]:
            assert not values.isfinite().all()


def test_inductor_vectorizes_the_element_loop() -> None:
    spec = QuantSpec.make("nvfp4")
    _, (code, *_) = run_and_get_code(torch.compile(lambda x: fake_quantize(x, spec, 0)), torch.randn(64, 96))
    if "at::vec::Vectorized" not in code:
        pytest.skip("this machine's compiler has no vector instructions for Inductor")
    assert ".copysign(" in code
    assert "std::copysign" not in code
    assert "tmpbuf" not in code  # a scalar loop in place of a vector operation


def test_inductor_with_a_dynamic_length_gives_the_same_bits() -> None:
    def values(x: Tensor) -> Tensor:
        return fake_quantize(x, QuantSpec.make("nvfp4"), -1)

    compiled = torch.compile(values, fullgraph=True)
    for length in (83, 64, 97):
        x = with_edges(5, length)
        torch._dynamo.mark_dynamic(x, 1)
        assert_same_bits([compiled(x)], [values(x)])


def count_compiles(function: Callable[..., Any], inputs: Sequence[Tensor], axis: int) -> int:
    count = 0

    def backend(module: fx.GraphModule, example_inputs: list[Tensor]) -> Callable[..., Any]:
        nonlocal count
        count += 1
        return module.forward

    torch._dynamo.reset()
    compiled = torch.compile(function, backend=backend, fullgraph=True)
    for x in inputs:
        torch._dynamo.mark_dynamic(x, axis)
        assert_same_bits(compiled(x), function(x))
    return count


@pytest.mark.parametrize(
    ("format", "axis"),
    sampled([("nvfp4", 0), ("nvfp4", 1), ("mxfp8", 0), ("fp8", 1)], [("nvfp4", 0), ("fp8", 1)]),
)
def test_one_compile_serves_all_lengths(format: str, axis: int) -> None:
    def parts(x: Tensor) -> list[Tensor]:
        quantized = quantize(x, format, axis)
        return [*quantized.parts, quantized.dequantize()]

    several = [torch.randn((n, 48) if axis == 0 else (48, n)) for n in (33, 64, 77, 96, 1000)]
    assert count_compiles(parts, several, axis) == 1
    # A length of exactly one block must not become a constant either.
    single = [torch.randn((n, 48) if axis == 0 else (48, n)) for n in (32, 16, 9, 3)]
    assert count_compiles(parts, single, axis) <= 2


def test_a_compiled_function_returns_a_quantized_tensor() -> None:
    x = torch.randn(8, 40)
    compiled = torch.compile(lambda x: quantize(x, "mxfp4", rounding="stochastic"), backend="eager", fullgraph=True)
    torch.manual_seed(3)
    got = compiled(x)
    torch.manual_seed(3)
    assert isinstance(got, QuantizedTensor)
    assert torch.equal(got.dequantize(), quantize(x, "mxfp4", rounding="stochastic").dequantize())


@pytest.mark.parametrize("format", FORMATS)
def test_fake_tensors_have_the_real_shapes_and_dtypes(format: str) -> None:
    for block in FORMATS[format].blocks:
        for shape in [(35, 50), (32, 256), (0, 7), (7, 0)]:
            for axis in (0, 1):
                real = quantize(torch.randn(shape), format, axis, block)
                with FakeTensorMode():
                    fake = quantize(torch.empty(shape), format, axis, block)
                    values = fake.dequantize(torch.bfloat16)
                assert [(p.shape, p.dtype) for p in fake.parts] == [(p.shape, p.dtype) for p in real.parts]
                assert (values.shape, values.dtype) == (shape, torch.bfloat16)


def trace(function: Callable[[Tensor], Any], *shape: int) -> tuple[fx.Graph, Tensor]:
    """The graph of a function of a tensor whose every size is a symbol, and that tensor."""
    mode = FakeTensorMode(shape_env=ShapeEnv())
    dynamic = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC] * len(shape))
    x = mode.from_tensor(torch.randn(shape), symbolic_context=dynamic)
    with mode, enable_python_dispatcher():
        return make_fx(function)(x).graph, x


def both_ways(x: Tensor, spec: QuantSpec, axis: int) -> list[Tensor]:
    return [decode(encode(x, spec, axis), spec, axis, x.shape[axis]), fake_quantize(x, spec, axis)]


@pytest.mark.parametrize("format", ["nvfp4", "mxfp8", "fp8_e5m2"])
@pytest.mark.parametrize("axis", [0, 1])
def test_symbolic_sizes_stay_symbolic(format: str, axis: int) -> None:
    for block in FORMATS[format].blocks:
        spec = QuantSpec.make(format, block, select="mse" if format == "nvfp4" else None)

        graph, x = trace(lambda x: both_ways(x, spec, axis), 80, 272)  # noqa: B023
        env = x.shape[0].node.shape_env  # type: ignore[attr-defined]
        assert not env.replacements  # no size has become a constant, or another
        for node in graph.find_nodes(op="output")[0].args[0]:
            assert tuple(node.meta["val"].shape) == tuple(x.shape)
            assert all(isinstance(size, torch.SymInt) for size in node.meta["val"].shape)


def test_a_known_multiple_is_not_padded() -> None:
    """A size such as batch * 16 is a multiple of the block without being known."""
    spec = QuantSpec.make("nvfp4")

    def pads(function: Callable[[Tensor], Tensor]) -> bool:
        graph, _ = trace(function, 3, 64)
        return any(node.target is torch.ops.aten.constant_pad_nd.default for node in graph.nodes)

    assert not pads(lambda x: fake_quantize(torch.cat([x] * 16, 0), spec, 0))
    assert pads(lambda x: fake_quantize(x, spec, 0))


def test_the_marker_sees_every_per_block_tensor_and_only_in_its_context() -> None:
    seen: list[tuple[int, ...]] = []

    def mark(t: Tensor) -> Tensor:
        seen.append(tuple(t.shape))
        return t.clone()

    x = torch.randn(32, 64)
    want = fake_quantize(x, QuantSpec.make("nvfp4"), 0)
    with materializing(mark):
        assert torch.equal(fake_quantize(x, QuantSpec.make("nvfp4"), 0), want)
    assert seen.count((2, 64)) == 2  # the scale, the multiplier
    count = len(seen)
    assert materialize(x) is x
    assert len(seen) == count
    with pytest.raises(RuntimeError, match="twice"), materializing(mark):
        raise RuntimeError("twice")
    assert materialize(x) is x
