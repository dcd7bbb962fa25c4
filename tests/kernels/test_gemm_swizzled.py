"""Products whose block scales lie swizzled: the operator, its template and what stands beside it."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any

import pytest
import torch
from long_tail import each_once, sampled
from one_template import Compiler, configs, kernel_of
from packed_operands import SPECS, Packed, assert_near, expected, packed, product
from swizzled_scales import swizzled

from metis_compile.kernels.gemm.aten_fallback import product as without_template
from metis_compile.kernels.gemm.op import GEMM
from metis_compile.numerics import QuantSpec, decode

pytest.importorskip("triton")

FORMATS = ["nvfp4", "mxfp4", "mxfp8", "mxfp8_e5m2"]
SPEC = SPECS["nvfp4"]


@pytest.fixture
def compiler(triton_on_cpu: Any, monkeypatch: pytest.MonkeyPatch) -> Compiler:
    return Compiler(triton_on_cpu, monkeypatch)


def both(
    rows: tuple[int, int], k: int, name: str, *, batch: tuple[int, ...] = (), transposed: bool = False
) -> tuple[Packed, Packed]:
    a, b = (packed((*batch, n, k), SPECS[name], transposed=transposed) for n in rows)
    return swizzled(a), swizzled(b)


def all_configurations() -> list[Any]:
    """Each size of a tile once, of operands along k and across it."""
    found = []
    for name, transposed in (("nvfp4", False), ("nvfp4", True), ("mxfp4", False), ("mxfp8", True)):
        a, b = both((2, 2), 2, name, transposed=transposed)
        tiles = {config[:3]: config for config in configs(a, b, 100)}
        for tile, config in tiles.items():
            label = f"{name}-{'wgrad' if transposed else 'fprop'}-{'x'.join(map(str, tile))}"
            marks = () if tile == min(tiles, key=math.prod) else pytest.mark.long
            found.append(pytest.param(name, transposed, config, id=label, marks=marks))
    return found


@pytest.mark.parametrize(("name", "transposed", "config"), all_configurations())
def test_every_configuration(compiler: Compiler, name: str, transposed: bool, config: Any) -> None:
    """In tiles that end within one of scales, in every direction."""
    a, b = both((133, 67), 331, name, transposed=transposed)
    assert config.block_n >= 128
    result, code = compiler(100, product, a, b, config=config)
    assert "load_swizzled_scales" in code
    assert_near(result, expected(a, b))


@pytest.mark.parametrize(("name", "k"), each_once(FORMATS, [1, 75, 512]))
def test_formats(compiler: Compiler, name: str, k: int) -> None:
    a, b = both((37, 270), k, name)
    assert_near(product(a, b), expected(a, b))
    result, code = compiler(100, product, a, b)
    assert_near(result, expected(a, b))
    assert f"EVEN_K : tl.constexpr = {k == 512}" in code


@pytest.mark.parametrize("side", ["a", "b"])
def test_one_of_the_two(compiler: Compiler, side: str) -> None:
    a, b = packed((37, 75), SPECS["nvfp4"], transposed=True), packed((21, 75), SPECS["nvfp4"])
    a, b = (swizzled(a), b) if side == "a" else (a, swizzled(b))
    result, code = compiler(100, product, a, b)
    assert_near(result, expected(a, b))
    assert code.count(" load_swizzled_scales(") == code.count(" load_scales(") == 1


@pytest.mark.parametrize(("name", "transposed"), each_once(["nvfp4", "mxfp8"], [False, True]))
def test_batches(compiler: Compiler, name: str, transposed: bool) -> None:
    a, b = both((133, 5), 50, name, batch=(3,), transposed=transposed)
    assert_near(product(a, b), expected(a, b))
    result, _ = compiler(100, product, a, b)
    assert_near(result, expected(a, b))


def test_tails(compiler: Compiler) -> None:
    a, b = both((37, 21), 75, "nvfp4")
    tails = (torch.randn(37, 5), torch.randn(5, 21), torch.randn(37, 19), torch.randn(19, 21))
    result, _ = compiler(100, product, a, b, tails)
    assert_near(result, expected(a, b, tails))


def test_scales_that_are_not_contiguous(compiler: Compiler) -> None:
    a, b = both((133, 21), 75, "mxfp4")
    apart = torch.stack([a.parts[1].view(torch.uint8)] * 2, -1).view(torch.float8_e8m0fnu)[..., 0]
    a = a._replace(parts=[a.parts[0], apart])
    result, _ = compiler(100, product, a, b)
    assert_near(result, expected(a, b))


@pytest.mark.parametrize("capability", [90, 110, 120])
def test_other_gpus_multiply_without_a_template(
    triton_on_cpu: Any, monkeypatch: pytest.MonkeyPatch, capability: int
) -> None:
    from metis_compile.compat import autotune
    from metis_compile.kernels.gemm import lowering

    seen: list[int] = []

    def counted(name: str, choices: list[Any], *rest: Any) -> Any:
        seen.append(len(choices))
        return autotune(name, choices, *rest)

    lowering.register_gemm()
    triton_on_cpu.capability = capability
    monkeypatch.setattr(lowering, "autotune", counted)
    a, b = both((37, 21), 75, "nvfp4")
    assert_near(torch.compile(product)(a, b), expected(a, b))
    assert seen == [1]


# What Triton makes of it


@pytest.mark.parametrize(("name", "transposed"), each_once(FORMATS, [False, True]))
def test_scales_are_copied_to_tensor_memory(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch, long: bool, name: str, transposed: bool
) -> None:
    """In whole steps and with part of one. From registers only zeros are stored there, with which a sum begins.

    By the first configuration; in the long tail by every one.
    """
    from torch._inductor.runtime.triton_heuristics import CachingAutotuner

    monkeypatch.setattr(CachingAutotuner, "run", lambda *given, **how: None)  # it is the code that counts
    k = 480 if transposed else 512
    a, b = both((512, 512), k, name, transposed=transposed)
    tried = configs(a, b, 100)[: None if long else 1]
    for config in tried:
        _, code = compiler(100, product, a, b, config=config)
        ptx = kernel_of(code, 100).ptx
        assert "tcgen05.cp.cta_group::1.warpx4.32x128b" in ptx
        assert scales_stored(ptx) == 0, config
    plain = (packed((512, k), SPECS[name], transposed=transposed) for _ in "ab")
    _, code = compiler(100, product, *plain, config=tried[0])
    ptx = kernel_of(code, 100).ptx
    assert "tcgen05.cp" not in ptx, "as matrices they are not"
    assert scales_stored(ptx) > 0


@pytest.mark.parametrize(("dynamic", "batch"), each_once([False, True], [(3,), ()]))
def test_of_batches_and_of_any_size_too(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch, batch: tuple[int, ...], dynamic: bool
) -> None:
    from torch._inductor.runtime.triton_heuristics import CachingAutotuner

    monkeypatch.setattr(CachingAutotuner, "run", lambda *given, **how: None)
    a, b = both((300, 260), 331, "nvfp4", batch=batch)
    _, code = compiler(100, product, a, b, config=configs(a, b, 100)[0], dynamic=dynamic)
    assert ("ks0" in code) == dynamic
    ptx = kernel_of(code, 100).ptx
    assert "tcgen05.cp" in ptx
    assert scales_stored(ptx) == 0


def scales_stored(ptx: str) -> int:
    """How many instructions store different values to tensor memory."""
    stored = re.findall(r"tcgen05\.st\.\S+ \[[^]]*\], \{([^}]*)\}", ptx)
    assert stored
    return sum(len({value.strip() for value in values.split(",")}) > 1 for values in stored)


# Without a template


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
def test_without_a_template(name: str, transposed: bool) -> None:
    a, b = both((133, 21), 75, name, transposed=transposed)
    sides: Any = {"a": (a.spec, a.axis, a.contract), "b": (b.spec, b.axis, b.contract)}
    out = torch.full((133, 21), torch.nan)
    assert_near(without_template(*a.parts, *b.parts, **sides, out=out), expected(a, b))


@pytest.mark.parametrize(
    ("name", "transposed", "shape"),
    sampled(
        itertools.product(FORMATS, [False, True], [(1, 1), (37, 75), (3, 133, 261)]),
        # of each format a matrix and a batch, one of them transposed
        lambda name, transposed, shape: shape != (1, 1) and transposed == ((len(shape) + FORMATS.index(name)) % 2 == 0),
    ),
)
def test_the_decoding_kernel(triton_on_cpu: Any, shape: tuple[int, ...], transposed: bool, name: str) -> None:
    from metis_compile.kernels.gemm.decode import decode_to_bfloat16

    plain = packed(shape, SPECS[name], transposed=transposed)
    unscaled = [*plain.parts[:2], *[torch.ones(()) for _ in plain.parts[2:]]]
    wanted = decode(unscaled, QuantSpec.parse(plain.spec), plain.axis, plain.length)
    a = swizzled(plain)
    assert torch.equal(decode_to_bfloat16(a.parts, a.operand, a.length).float(), wanted)


# What is refused


def call(scales: torch.Tensor, spec: str = SPEC) -> torch.Tensor:
    """A product [4, 32] @ [32, 6] with these scales of a."""
    a, b = packed((4, 32), spec), packed((6, 32), spec)
    return GEMM(*a._replace(parts=[a.parts[0], scales, *a.parts[2:]]), *b, [])


@pytest.mark.parametrize(
    ("scales", "spec", "message"),
    [
        (
            torch.ones(1, 2, 32, 4, 4).to(torch.float8_e4m3fn),
            SPEC,
            r"metis::gemm: the block_scales of a must have shape \[1, 1, 32, 4, 4\] for length 32, got \[1, 2, 32, 4",
        ),
        (
            torch.ones(1, 1, 512).to(torch.float8_e4m3fn),
            SPEC,
            r"metis::gemm: the block_scales of a must have shape \[4, 2\], or \[1, 1, 32, 4, 4\] swizzled, for length "
            r"32, got \[1, 1, 512\]",
        ),
        (
            torch.ones(1, 1, 32, 4, 4),
            "fp8 1x128 nearest",
            r"metis::gemm: the block_scales of a must have shape \[4, 1\] for length 32, got \[1, 1, 32, 4, 4\]",
        ),
        (
            torch.ones(1, 1, 32, 4, 4).to(torch.float8_e4m3fn),
            "nvfp4 16x16 nearest",
            r"metis::gemm: the block_scales of a must have shape \[1, 2\] for length 32, got \[1, 1, 32, 4, 4\]",
        ),
    ],
)
def test_shapes_that_do_not_fit(scales: torch.Tensor, spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(scales, spec)
