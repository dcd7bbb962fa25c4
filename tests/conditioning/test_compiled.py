"""Conditionings under torch.compile, traced, and with symbolic sizes: the same results, no guard on a row count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from anisotropic import anisotropic
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch._inductor.compile_fx import compile_fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from metis_compile.conditioning import Chain, Mean, Spectral, adapt_rate, fixed_signs, hadamard, signs_from
from metis_compile.conditioning.orthonormal import METHODS, orthonormalize

HOW = Chain(steps=(Mean(factors="nvfp4"), Spectral(rank=4, factors="nvfp4 1x16 stochastic round_up")))


def everything(x: Tensor, seed: Tensor) -> list[Tensor]:
    basis = HOW.fresh_basis(x, seed)
    parts = HOW.split(x, seed=seed, basis=basis)
    after = HOW.update_basis(x, basis, seed=seed)
    turned = [hadamard(x, axis, fixed_signs()) for axis in (0, 1)]
    return [*parts, *adapt_rate(parts), basis, after, *turned]


def assert_close(got: list[Tensor], want: list[Tensor]) -> None:
    for a, b in zip(got, want, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        # A rounding error more or less may round a factor's element the other way; no more than a few.
        assert ((a - b).abs() > 1e-3 * b.abs().max()).float().mean() < 0.02


def test_inductor_gives_the_same_with_any_number_of_rows() -> None:
    how = Chain(steps=(Mean(), Spectral(rank=4)))
    count = 0

    def step(x: Tensor, seed: Tensor, basis: Tensor) -> list[Tensor]:
        parts = adapt_rate(how.split(x, basis=basis))
        return [*parts, how.update_basis(x, basis), hadamard(x, 0, signs_from(seed))]

    def backend(module: fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        nonlocal count
        count += 1
        return compile_fx(module, inputs)

    compiled = torch.compile(step, fullgraph=True, backend=backend)
    seed = torch.tensor([5])
    for rows in (100, 77, 1000):
        x = anisotropic(rows, 48)
        basis = how.fresh_basis(x, seed)
        torch._dynamo.mark_dynamic(x, 0)
        assert_close(compiled(x, seed, basis), step(x, seed, basis))
    assert count == 1


def trace(function: Callable[..., Any], x: Tensor, dynamic: list[DimDynamic]) -> tuple[fx.GraphModule, ShapeEnv]:
    env = ShapeEnv()
    mode = FakeTensorMode(shape_env=env)
    fake = mode.from_tensor(x, symbolic_context=StatelessSymbolicContext(dynamic_sizes=dynamic))
    with mode, enable_python_dispatcher():
        seed = torch.zeros(1, dtype=torch.int64)
        return make_fx(function)(fake, seed), env


@pytest.mark.parametrize("columns", [DimDynamic.STATIC, DimDynamic.DYNAMIC])
def test_symbolic_sizes_are_not_guarded(columns: DimDynamic) -> None:
    x = anisotropic(300, 64)
    module, env = trace(everything, x, [DimDynamic.DYNAMIC, columns])
    assert not env.replacements
    assert not [guard for guard in env.guards if "s" in str(guard.expr) and "Eq" in str(guard.expr)]
    residual = module.graph.find_nodes(op="output")[0].args[0][0].meta["val"]
    assert isinstance(residual.shape[0], torch.SymInt)
    assert residual.shape[0].node.expr.is_symbol


@pytest.mark.parametrize("method", METHODS)
def test_orthonormalization_traces(method: str) -> None:
    module, env = trace(
        lambda y, _: orthonormalize(y, method), torch.randn(90, 5), [DimDynamic.DYNAMIC, DimDynamic.STATIC]
    )
    assert not env.replacements
    y = torch.randn(90, 5)
    static = make_fx(lambda y: orthonormalize(y, method))(y)
    assert torch.equal(static(y), orthonormalize(y, method))
    names = [str(node.target) for node in module.graph.nodes]
    assert any(("qr" if method == "householder" else "cholesky") in name for name in names)


def test_what_is_traced_does_not_bake_in_values() -> None:
    x, seed = anisotropic(60, 48), torch.tensor([1])
    module = make_fx(everything)(x, seed)
    other, other_seed = anisotropic(60, 48, seed=9) * 1e3, torch.tensor([2])
    assert_close(module(other, other_seed), everything(other, other_seed))
