"""The templates of packed products on a GPU, one by one, into outputs that start as NaN, against the CPU.

And what they are chosen beside: the kernel that decodes, and the product without a template.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import pytest
import torch
from packed_operands import LAYOUTS, RTOL, SPECS, Packed, expected, packed, product
from swizzled_scales import swizzled
from torch import Tensor
from torch._inductor.utils import run_and_get_code

from metis_compile.compat import autotune, inductor_config
from metis_compile.kernels.capability import copies_scales
from metis_compile.kernels.gemm.aten_fallback import product as without_template
from metis_compile.numerics import QuantSpec, decode, encode

pytest.importorskip("triton")
pytestmark = pytest.mark.gpu

# Hopper's FP8 tensor cores keep about 14 bits of a running sum, of 128 products here.
FP8_RTOL = 2**-10
EXACT = [name for name, spec in SPECS.items() if QuantSpec.parse(spec).fmt.scale != "fp32"]


def on_gpu(a: Packed) -> Packed:
    return a._replace(parts=[part.cuda() for part in a.parts])


def assert_near(actual: Tensor, a: Packed, b: Packed, tails: tuple[Tensor, ...] = ()) -> None:
    """To what the operands on the CPU give."""
    wanted = expected(a, b, tails)
    native = all(side.operand.spec.element.bits == 8 and not side.operand.in_registers for side in (a, b))
    rtol = FP8_RTOL if native else RTOL
    assert actual.device.type == "cuda"
    torch.testing.assert_close(actual.cpu(), wanted, rtol=rtol, atol=rtol * float(wanted.abs().max()))


class Compiler:
    """Compiles a function with one configuration of one template, the smallest unless one is given, and no other."""

    def __init__(self, allocated: list[torch.Size], monkeypatch: pytest.MonkeyPatch) -> None:
        from metis_compile.kernels.gemm import lowering

        lowering.register_gemm()
        self.allocated, self.config = allocated, None
        monkeypatch.setattr(lowering, "configs_for", self._one)
        monkeypatch.setattr(lowering, "autotune", self._template)

    def _one(self, configs: Sequence[Any], m: int, n: int) -> Sequence[Any]:
        return [min(configs, key=lambda c: c.block_m * c.block_n * c.block_k) if self.config is None else self.config]

    def _template(self, name: str, choices: list[Any], nodes: list[Any], layout: Any) -> Any:
        assert len(choices) == 2, "one template and the product without one"
        return autotune(name, choices[:1], nodes, layout)

    def __call__(self, function: Callable[..., Tensor], *args: Any, config: Any = None) -> Tensor:
        self.config = config
        torch.compiler.reset()
        with inductor_config.patch(force_disable_caches=True):
            result, codes = run_and_get_code(torch.compile(function, dynamic=False), *args)
        assert "triton_tem" in "\n".join(codes)
        assert result.shape in self.allocated, "what is given back started as NaN"
        return result


@pytest.fixture
def compiler(nan_filled: list[torch.Size], monkeypatch: pytest.MonkeyPatch) -> Compiler:
    return Compiler(nan_filled, monkeypatch)


def capability() -> int:
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


@pytest.mark.parametrize("shape", [(37, 21, 75), (133, 67, 259), (256, 384, 512), (1, 1, 1)], ids=str)
@pytest.mark.parametrize("name", SPECS)
def test_formats(compiler: Compiler, name: str, shape: tuple[int, int, int]) -> None:
    m, n, k = shape
    a, b = packed((m, k), SPECS[name]), packed((n, k), SPECS[name])
    assert_near(compiler(product, on_gpu(a), on_gpu(b)), a, b)


@pytest.mark.parametrize(
    ("template", "name"),
    [
        *(("emulated", name) for name in ("nvfp4", "nvfp4-2d", "mxfp8", "fp8-128")),
        *(("fp8", name) for name in ("fp8", "fp8-row", "fp8-128")),
        *(("block_scaled", name) for name in ("nvfp4", "mxfp4", "mxfp8")),
    ],
)
def test_every_configuration(compiler: Compiler, monkeypatch: pytest.MonkeyPatch, template: str, name: str) -> None:
    """Also of templates that others come before."""
    from metis_compile.kernels.gemm import lowering

    module = import_module(f"metis_compile.kernels.gemm.{template}")
    a, b = packed((133, 259), SPECS[name]), packed((67, 259), SPECS[name])
    operands = a.operand, b.operand, capability()
    if not module.supports(*operands):
        pytest.skip(f"{template} is not for compute capability {capability() / 10}")
    monkeypatch.setattr(lowering, "template_for", lambda *_: module)
    tried = 0
    for config in module.configs(*operands):
        assert_near(compiler(product, on_gpu(a), on_gpu(b), config=config), a, b)
        tried += 1
    assert tried > 0


@pytest.mark.parametrize(
    ("left", "right"),
    LAYOUTS,
    ids=lambda side: "-".join([side[0], *side[1]]),
)
@pytest.mark.parametrize("shape", [(37, 21, 75), (256, 128, 512)], ids=str)
def test_layouts_and_mixed_formats(compiler: Compiler, left: Any, right: Any, shape: tuple[int, int, int]) -> None:
    m, n, k = shape
    a, b = packed((m, k), SPECS[left[0]], **left[1]), packed((n, k), SPECS[right[0]], **right[1])
    assert_near(compiler(product, on_gpu(a), on_gpu(b)), a, b)


@pytest.mark.parametrize("name", ["nvfp4", "mxfp8", "fp8-row"])
@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
def test_batches(compiler: Compiler, name: str, transposed: bool) -> None:
    a, b = packed((3, 19, 50), SPECS[name], transposed=transposed), packed((3, 5, 50), SPECS[name])
    assert_near(compiler(product, on_gpu(a), on_gpu(b)), a, b)


@pytest.mark.parametrize("name", ["nvfp4", "mxfp4", "mxfp8"])
@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
@pytest.mark.parametrize("shape", [(37, 21, 75), (133, 270, 331), (256, 384, 512)], ids=str)
def test_swizzled_scales(compiler: Compiler, name: str, transposed: bool, shape: tuple[int, int, int]) -> None:
    """By every configuration, where they are copied to tensor memory; without a template elsewhere."""
    m, n, k = shape
    a, b = (swizzled(packed((rows, k), SPECS[name], transposed=transposed)) for rows in (m, n))
    sides: Any = {"a": (a.spec, a.axis, a.contract), "b": (b.spec, b.axis, b.contract)}
    out = torch.full((m, n), torch.nan, device="cuda")
    assert_near(without_template(*on_gpu(a).parts, *on_gpu(b).parts, **sides, out=out), a, b)
    if copies_scales(capability()):
        from metis_compile.kernels.gemm import block_scaled

        for config in block_scaled.configs(a.operand, b.operand, capability()):
            assert_near(compiler(product, on_gpu(a), on_gpu(b), config=config), a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("ranks", [(5,), (19, 64)], ids=str)
def test_tails(compiler: Compiler, dtype: torch.dtype, ranks: tuple[int, ...]) -> None:
    a, b = packed((37, 75), SPECS["nvfp4"]), packed((21, 75), SPECS["nvfp4"])
    tails = tuple(torch.randn(*shape).to(dtype) for rank in ranks for shape in ((37, rank), (rank, 21)))
    there = tuple(tail.cuda() for tail in tails)
    assert_near(compiler(product, on_gpu(a), on_gpu(b), there), a, b, tails)


def test_epilogues_are_fused_into_the_store(compiler: Compiler) -> None:
    def function(a: Packed, b: Packed, bias: Tensor, residual: Tensor) -> Tensor:
        return (torch.relu(product(a, b) + bias) + residual).bfloat16()

    a, b = packed((37, 75), SPECS["nvfp4"]), packed((21, 75), SPECS["nvfp4"])
    bias, residual = torch.randn(21), torch.randn(37, 21)
    result = compiler(function, on_gpu(a), on_gpu(b), bias.cuda(), residual.cuda())
    wanted = (torch.relu(expected(a, b) + bias) + residual).bfloat16()
    torch.testing.assert_close(result.cpu(), wanted, rtol=2**-7, atol=2**-7)  # float32 sums may round either way


@pytest.mark.parametrize("name", ["nvfp4", "mxfp4", "mxfp8", "fp8"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(compiler: Compiler, name: str, bad: float) -> None:
    x = torch.randn(5, 40)
    x[2, 3] = bad
    a = Packed(encode(x, QuantSpec.parse(SPECS[name]), 1), SPECS[name], 1, 40, 1)
    b = packed((6, 40), SPECS[name])
    result = compiler(product, on_gpu(a), on_gpu(b)).cpu()
    assert not result[2].isfinite().any()
    assert torch.equal(result.isfinite(), product(a, b).isfinite())


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
@pytest.mark.parametrize("shape", [(1, 1), (37, 75), (3, 70, 261), (1024, 2048)], ids=str)
def test_the_decoding_kernel(shape: tuple[int, ...], transposed: bool, name: str) -> None:
    """Bit for bit what decoding gives, and every element of it."""
    from metis_compile.kernels.gemm.decode import decode_to_bfloat16

    a = packed(shape, SPECS[name], transposed=transposed)
    unscaled = [*a.parts[:2], *[torch.ones(()) for _ in a.parts[2:]]]
    wanted = decode(unscaled, QuantSpec.parse(a.spec), a.axis, a.length)
    used = torch.full((wanted.numel(),), torch.nan, dtype=torch.bfloat16, device="cuda")
    del used  # what is allocated next is likely to be this: NaN, where nothing is written
    actual = decode_to_bfloat16(on_gpu(a).parts, a.operand, a.length)
    assert torch.equal(actual.float().cpu(), wanted)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
def test_without_a_template(name: str, transposed: bool) -> None:
    a, b = packed((37, 75), SPECS[name], transposed=transposed), packed((21, 75), SPECS[name])
    sides: Any = {"a": (a.spec, a.axis, a.contract), "b": (b.spec, b.axis, b.contract)}
    out = torch.full((37, 21), torch.nan, device="cuda")
    assert_near(without_template(*on_gpu(a).parts, *on_gpu(b).parts, **sides, out=out), a, b)
