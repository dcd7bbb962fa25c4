"""The Triton quantize kernel on a GPU against the numerics on the CPU: what the interpreter says of it must hold."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import value_families
from same_bytes import assert_same_parts
from specs import TILED as SPECS
from swizzled_scales import swizzled_parts
from torch import Tensor, nn

from metis_compile.conditioning import fixed_signs, hadamard
from metis_compile.kernels.quantize.ops import QUANTIZE_TILES, TILES_AMAX
from metis_compile.numerics import QuantSpec, encode, noise_shape, uniform_noise
from metis_compile.numerics.swizzle import can_swizzle

pytest.importorskip("triton")
pytestmark = pytest.mark.gpu

SHAPES = [(37, 70), (1, 33), (3, 20, 50), (128, 4096), (300, 1544)]
SEED = torch.tensor([0x7A5B_1234_9ABC_DEF0])


def check(
    source: list[Tensor | None],
    value: Tensor,
    text: str,
    axes: tuple[int, ...],
    what: str,
    swizzled: tuple[int, ...] = (),
) -> None:
    """One call on the GPU for `source`, against `encode` of `value` on the CPU along each axis."""
    spec = QuantSpec.parse(text)
    given = [None if tensor is None else tensor.cuda() for tensor in source]
    amax = value.abs().amax().float() if spec.fmt.tensor_scale else None
    if amax is not None and len(source) > 2 and any(tensor is not None for tensor in source[2:]):
        assert torch.equal(TILES_AMAX(*given, axes[0]).cpu(), amax)
    stream = [3] * len(axes)
    seed = SEED.cuda() if spec.needs_noise else None
    made = QUANTIZE_TILES(*given, None if amax is None else amax.cuda(), seed, text, list(axes), stream, list(swizzled))
    made = [part.cpu() for part in made]
    for i, axis in enumerate(axes):
        noise = uniform_noise(SEED, 3, noise_shape(value.shape, spec, axis)) if spec.needs_noise else None
        parts = [*made[2 * i : 2 * i + 2], *made[2 * len(axes) :]]
        wanted = encode(value, spec, axis, noise)
        wanted = swizzled_parts(wanted, axis) if axis in swizzled else wanted
        assert_same_parts(parts, wanted, spec, f"{text} {what} axis {axis}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("text", SPECS)
def test_bytes_are_those_of_the_numerics(text: str, dtype: torch.dtype) -> None:
    for number, family in enumerate(value_families.FAMILIES):
        shape = SHAPES[number % len(SHAPES)]
        x = torch.from_numpy(value_families.draw(family, number, shape)).to(dtype)
        x = torch.where(x.isfinite(), x, 0)  # what float16 has no room for
        axes = [(-1, -2), (-2, -1), (-1,), (-2,)][number % 4]
        check([x, None, None, None, None], x, text, axes, f"{family} {shape}")


@pytest.mark.parametrize("text", [text for text in SPECS if can_swizzle(QuantSpec.parse(text))])
@pytest.mark.parametrize(
    ("axes", "swizzled"), [((-1, -2), (-1, -2)), ((-2, -1), (-1,)), ((-1,), (-1,)), ((-2,), (-2,))], ids=str
)
def test_swizzled_scales(text: str, axes: tuple[int, ...], swizzled: tuple[int, ...]) -> None:
    for shape in SHAPES:
        x = torch.randn(shape)
        used = torch.full((2**22,), 0xFF, dtype=torch.uint8, device="cuda")
        del used  # what is allocated next is likely to be this: not zero, where nothing but filling goes
        check([x, None, None, None, None], x, text, axes, f"{shape}", swizzled)


@pytest.mark.parametrize("text", SPECS)
def test_what_is_not_finite(text: str) -> None:
    for special in (math.nan, math.inf):
        x = torch.randn(40, 65)
        x[7, 33] = special
        check([x, None, None, None, None], x, text, (1, 0), str(special))


@pytest.mark.parametrize("text", ["nvfp4 1x16 nearest", "nvfp4 1x16 stochastic round_up", "mxfp4 1x32 nearest floor"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_made_in_registers(text: str, dtype: torch.dtype) -> None:
    """Of integers, whose sums are the same in every order."""

    def draw(*shape: int) -> Tensor:
        return torch.randint(-3, 4, shape).float()

    for rows, columns, rank in ((48, 64, 5), (128, 2064, 16), (304, 1544, 70)):
        x, mean, left, right = draw(rows, columns), draw(1, columns), draw(rows, rank), draw(rank, columns)
        residual = x - mean - left @ right
        factors = [t.to(dtype) for t in (left, right)]
        stored = x.to(dtype)
        check([stored, mean, None, None, None], x - mean, text, (1, 0), "mean")
        check([stored, mean, *factors, None], residual, text, (1, 0), f"rank {rank}")
        for axis in (0, 1) if columns % 16 == 0 else (0,):
            signs = fixed_signs()
            check([stored, None, None, None, signs], hadamard(x, axis, signs), text, (axis,), "transform")
            check([stored, mean, *factors, signs], hadamard(residual, axis, signs), text, (axis,), "all")


def test_positions_beyond_32_bits_of_bytes() -> None:
    """A tensor of more than 2^32 bytes; its last rows against those rows by themselves."""
    if torch.cuda.mem_get_info()[0] < 24 * 2**30:
        pytest.skip("needs 24 GiB of free GPU memory")
    rows, columns = 2**16 + 48, 2**15 + 64
    x = torch.zeros(rows, columns, dtype=torch.bfloat16, device="cuda")
    x[-48:] = torch.randn(48, columns).to(x)
    codes, scales = QUANTIZE_TILES(x, None, None, None, None, None, None, "mxfp4 1x32 nearest floor", [1], [0])
    expected = encode(x[-48:].cpu(), QuantSpec.parse("mxfp4 1x32 nearest floor"), 1)
    assert_same_parts([codes[-48:].cpu(), scales[-48:].cpu()], expected, QuantSpec.parse("mxfp4 1x32 nearest floor"))
    assert not codes[:-48].any()


@pytest.mark.parametrize("policy", ["nvfp4", "averis", "metis", "nvidia", "mxfp8"])
def test_a_compiled_model_quantizes_with_it(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from metis_compile.kernels.quantize import tiles

    seen: list[Any] = []
    run = tiles.quantize_tiles
    monkeypatch.setattr(tiles, "quantize_tiles", lambda *given, **how: (seen.append(given[1]), run(*given, **how)))
    model = nn.Sequential(nn.Linear(256, 512), nn.GELU(), nn.Linear(512, 256)).cuda().bfloat16()
    x = torch.randn(128, 256, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    wanted = model(x)
    (wanted_gradient,) = torch.autograd.grad(wanted.square().mean(), x)
    compiled = torch.compile(model, backend="metis", options={"policy": policy})
    actual = compiled(x)
    actual.square().mean().backward()
    assert len(seen) >= 6
    for a, b in ((actual, wanted), (x.grad, wanted_gradient)):
        assert a is not None
        assert 0 < float((a - b).norm() / b.norm()) < 0.5  # quantized, and nothing worse
