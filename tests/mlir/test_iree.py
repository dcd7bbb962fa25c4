"""What is exported computes what torch computes: forward and backward, compiled by IREE for the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from long_tail import each_once, sampled
from torch import Tensor, nn

import metis_compile
from metis_compile.numerics import QuantSpec, decode, encode, uniform_noise

iree = pytest.importorskip("iree", reason="the export is run by IREE, whose packages are for Linux")
pytest.importorskip("torch_mlir", reason="the export is made by torch-mlir, whose packages are for Linux")

# Sums run in another order, and exp, erf and sqrt are other implementations: a few units in float32's last place, a
# unit of bfloat16 (2^-8) where results are rounded to that. Norms are compared; a code that fell the other way, of a
# value on the edge between two, would show as a thousand times more.
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2.0**-8}


def assert_same(port: Any, eager: Tensor, compiled: Tensor) -> None:
    assert compiled.shape == eager.shape, port
    assert compiled.dtype == eager.dtype, port
    if eager.dtype not in TOLERANCE:  # codes, scales and integers
        assert torch.equal(compiled.reshape(-1).view(torch.uint8), eager.reshape(-1).view(torch.uint8)), port
        return
    error = (compiled.float() - eager.float()).norm() / eager.float().norm().clamp(min=1e-30)
    assert error <= TOLERANCE[eager.dtype], f"{port}: {error:.2e}"


def check(model: Callable[..., Any], *args: Any, policy: Any) -> metis_compile.Exported:
    from iree_runner import eager_and_compiled, values_for

    torch.compiler.reset()
    exported = metis_compile.export_mlir(model, *args, policy=policy)
    values = values_for(exported)
    for program in exported.programs:
        for port, eager, compiled in eager_and_compiled(program, values):
            assert_same(port, eager, compiled)
    return exported


class TwoLayers(nn.Module):
    """All sizes equal, so that few functions have to be compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(32, 32)
        self.down = nn.Linear(32, 32, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


@pytest.mark.parametrize("policy", sampled(["nvfp4", "averis", "metis", "fp8"], ["metis", "fp8"]))
def test_forward_and_backward_of_two_layers(policy: str) -> None:
    torch.manual_seed(0)
    exported = check(TwoLayers(), torch.randn(32, 32), policy=policy)
    kinds = [port.kind for port in exported.programs[1].outputs]
    assert kinds.count("gradient") == 3
    kept = {port.name for program in exported.programs for port in program.outputs if port.kind == "state"}
    expected = {f"{name}.weight: {part}" for name in ("up", "down") for part in ("activation", "gradient")}
    assert kept == (expected if policy == "metis" else set())


def test_bfloat16_and_sizes_that_do_not_fill_their_blocks() -> None:
    torch.manual_seed(0)
    check(nn.Linear(33, 27).bfloat16(), torch.randn(25, 33, dtype=torch.bfloat16), policy="nvfp4")


class Language(nn.Module):
    """Embedding, norm, fused attention and cross entropy: what else a transformer takes."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, 32)
        self.norm = nn.LayerNorm(32)
        self.qkv = nn.Linear(32, 96)
        self.head = nn.Linear(32, 30, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        q, k, v = (t.unflatten(-1, (2, 16)).transpose(1, 2) for t in self.qkv(self.norm(x)).chunk(3, -1))
        x = x + F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        return F.cross_entropy(self.head(x).flatten(0, 1), tokens.flatten())


def test_a_small_transformer() -> None:
    torch.manual_seed(0)
    exported = check(Language(), torch.randint(0, 30, (2, 16)), policy="mxfp8")
    assert any(name.startswith("metis_attention_2x2x16x16") for name in exported.programs[0].functions)


SPECS = [
    "nvfp4 1x16 nearest",
    "nvfp4 16x16 stochastic round_up",
    "nvfp4 1x16 stochastic 17/16",
    "mxfp4 1x32 nearest even",
    "mxfp8_e5m2 1x32 nearest rceil",
    "fp8 1x128 nearest",
    "fp8_e5m2 tensor nearest",
]


def quantization(spec: str, axis: int, length: int) -> Callable[..., tuple[Tensor, ...]]:
    """A model whose graph is one quantization and its inverse."""

    def run(x: Tensor, seed: Tensor) -> tuple[Tensor, ...]:
        given = (seed, 3) if QuantSpec.parse(spec).stochastic else ()
        parts = torch.ops.metis.quantize(x, spec, axis, *given)
        return (*parts, torch.ops.metis.dequantize(parts, spec, axis, length))

    return run


@pytest.mark.parametrize(("spec", "axis"), each_once(SPECS, [0, 1]))
def test_quantization_is_that_of_the_numerics_bit_for_bit(spec: str, axis: int) -> None:
    from iree_runner import run

    torch.manual_seed(0)
    x = torch.randn(34, 50) * torch.logspace(-6, 6, 50, base=2.0)
    x[0, 0], x[1], x[2, :20] = -0.0, 0.0, 6.0
    seed, parsed = torch.tensor([2**62 + 12345]), QuantSpec.parse(spec)
    torch.compiler.reset()
    exported = metis_compile.export_mlir(quantization(spec, axis, x.shape[axis]), x, seed, policy="high")
    (program,) = exported.programs
    given = {"x": x, "seed": seed}
    dtypes = [port.dtype for port in program.outputs]
    got = run(program.mlir, program.name, [given[port.name] for port in program.inputs], dtypes)
    noise = uniform_noise(seed, 3, x.shape) if parsed.stochastic else None
    wanted = encode(x, parsed, axis, noise)
    wanted.append(decode(wanted, parsed, axis, x.shape[axis]))
    for ours, reference in zip(got, wanted, strict=True):
        assert torch.equal(ours.reshape(-1).view(torch.uint8), reference.reshape(-1).contiguous().view(torch.uint8))
