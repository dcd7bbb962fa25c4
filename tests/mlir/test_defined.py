"""Nothing that is exported has a result that depends on the CPU: see `undefined`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from long_tail import sampled
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from undefined import Defined, UndefinedError, hard_to_quantize

import metis_compile
from metis_compile.mlir.simplify import simplify
from metis_compile.numerics import QuantSpec, decode, encode, noise_shape, uniform_noise
from metis_compile.numerics.formats import FORMATS

SHAPE = (33, 50)


SPECS = [
    QuantSpec.make(f.name, block, rounding, guard, mode)
    for f in FORMATS.values()
    for block in f.blocks
    for rounding in f.roundings
    for guard in (f.guards if rounding == "stochastic" else (None,))
    for mode in f.scale_modes or (None,)
]
SPECS += [QuantSpec.make("nvfp4", "1x16", select=select) for select in ("mse", "mae")]
SPECS += [QuantSpec.make("nvfp4", "16x16", "stochastic", select="expected")]


def simplified(run: Callable[..., Any], *inputs: Tensor) -> fx.GraphModule:
    with FakeTensorMode() as mode:
        gm = make_fx(run)(*(mode.from_tensor(x) for x in inputs))
    simplify(gm.graph)
    gm.recompile()
    return gm


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_quantization(spec: QuantSpec) -> None:
    """On numbers of all sizes, infinities and NaN, which become codes and scales too."""

    def quantized(x: Tensor, seed: Tensor) -> list[Tensor]:
        noise = uniform_noise(seed, 0, noise_shape(x.shape, spec, 1)) if spec.needs_noise else None
        return encode(x, spec, 1, noise)

    hard, seed = hard_to_quantize(SHAPE), torch.tensor([2**62 + 12345])
    gm = simplified(quantized, hard[0], seed)
    values = simplified(lambda *parts: decode(parts, spec, 1, SHAPE[1]), *quantized(hard[0], seed))
    for x in hard:
        Defined(values).run(*Defined(gm).run(x, seed))


def test_what_is_undefined_is_seen() -> None:
    x, n = torch.tensor([1.0, 300.0]), torch.tensor([1, 2], dtype=torch.int32)
    Defined(make_fx(lambda x: (x / 4).to(torch.int32) << 31)(x)).run(x)
    for run, inputs in [
        (lambda x: x.to(torch.int16), (x,)),
        (lambda x: (x * 1e9).to(torch.int32), (x,)),
        (lambda x: (x * torch.nan).to(torch.int64), (x,)),
        (lambda n: n << 32, (n,)),
        (lambda n: torch.bitwise_right_shift(n, n - 2), (n,)),
        (lambda n: n.float().to(torch.int32) % n.sub(1), (n,)),
    ]:
        with pytest.raises(UndefinedError):
            Defined(make_fx(run, tracing_mode="fake")(*inputs)).run(*inputs)


@pytest.mark.parametrize(
    "policy", sampled(["nvfp4", "mxfp8", "fp8", "best", "averis-hadamard"], ["mxfp8", "fp8", "best"])
)
def test_no_float_goes_to_few_bits_at_once(policy: str) -> None:
    pytest.importorskip("torch_mlir", reason="the export is made by torch-mlir, whose packages are for Linux")
    exported = metis_compile.export_mlir(torch.nn.Linear(48, 40), torch.randn(33, 48), policy=policy)
    text = "".join(program.mlir for program in exported.programs)
    casts = re.findall(r"arith\.fpto[su]i .*", text)
    assert casts or "nvfp4" not in text
    assert not [line for line in casts if re.search(r"to (vector<\w+x)?i(8|16)\b", line)]
    assert not re.search(r"\b(poison|undef|nsw|nuw|fastmath)\b", text)


def test_uint8_beside_numbers_has_no_sign() -> None:
    """Of masks, bytes and whatever else a model has in uint8, on any CPU."""
    pytest.importorskip("iree", reason="the export is run by IREE, whose packages are for Linux")
    from iree_runner import run

    def model(x: Tensor, f: Tensor) -> tuple[Tensor, ...]:
        compared = (x > 130, x <= 130, x == 200, x != 255, torch.maximum(x, x.to(torch.int32)))
        computed = (x / 2, x * 0.5, x // 16, x % 7, -x, x + 100, 5 - x, x * 3)
        return (*compared, *computed, f.to(torch.uint8), x.to(torch.float32))

    x = torch.tensor([0, 1, 127, 128, 200, 255], dtype=torch.uint8)
    f = torch.tensor([0.0, 1.5, 127.9, 128.0, 200.7, 255.9])
    (program,) = metis_compile.export_mlir(model, x, f, policy="high").programs
    given = {"x": x, "f": f}
    made = run(program.mlir, program.name, [given[p.name] for p in program.inputs], [p.dtype for p in program.outputs])
    for ours, wanted in zip(made, model(x, f), strict=True):
        assert ours.dtype == wanted.dtype
        assert torch.equal(ours, wanted)


def test_integers_are_negated_exactly() -> None:
    pytest.importorskip("iree", reason="the export is run by IREE, whose packages are for Linux")
    from iree_runner import run

    x = torch.tensor([2**53 + 1, -5, 0])
    (program,) = metis_compile.export_mlir(torch.neg, x, policy="high").programs
    (made,) = run(program.mlir, program.name, [x], [torch.int64])
    assert torch.equal(made, -x)
