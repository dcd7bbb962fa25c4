"""The operators of bases: what the plain torch gives, the same floating-point operations, and no sketch in vain."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from anisotropic import anisotropic
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from metis_compile.conditioning import Chain, Mean, Spectral, next_basis
from metis_compile.conditioning.operators import using
from metis_compile.ops.basis import FRESH_BASIS, POWER_STEP
from metis_compile.passes.graph.operators import GraphOperators
from metis_compile.passes.lowering.decompose_bases import decompose_bases

SEED = torch.tensor([3])
SETTINGS: list[dict[str, Any]] = [
    {},
    {"oversample": 0, "sketch": "signs"},
    {"power_steps": 0, "sample": 0.5},
    {"power_steps": 3, "sample": 1.0, "sample_least": 1},
]


def flops(run: Any, *args: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        run(*args)
    return int(counter.get_total_flops())


def fresh(how: Spectral, x: Tensor, *kept: Tensor, seed: Tensor = SEED) -> Tensor:
    settings = (how.sample, how.sample_least, how.sketch, how.oversample, how.power_steps)
    return FRESH_BASIS(x, seed, 0, how.rank, *settings, *kept)  # type: ignore[no-any-return]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("shape", [(300, 64), (30, 64), (2000, 10)], ids=str)
def test_a_fresh_basis(settings: dict[str, Any], shape: tuple[int, int]) -> None:
    how, x = Spectral(rank=4, **settings), anisotropic(*shape)
    assert torch.equal(fresh(how, x), how.fresh_basis(x, SEED))
    assert flops(fresh, how, x) == flops(how.fresh_basis, x, SEED) > 0


def test_no_sketch_where_the_basis_is_not_stale() -> None:
    how, x = Spectral(rank=4), anisotropic(300, 64)
    kept = torch.randn(4, 64)
    for stale in (False, True):
        given = (kept, torch.tensor([stale]))
        assert torch.equal(fresh(how, x, *given), how.fresh_basis(x, SEED) if stale else kept)
        assert flops(fresh, how, x, *given) == (flops(fresh, how, x) if stale else 0)
    assert fresh(how, x, kept, torch.tensor([False])).data_ptr() != kept.data_ptr()


@pytest.mark.parametrize("left", [False, True])
def test_a_power_step(left: bool) -> None:
    x = anisotropic(300, 64)
    basis = torch.linalg.qr(torch.randn(64, 4))[0].T
    given = [x @ basis.T] if left else []
    assert torch.equal(POWER_STEP(x, basis, *given), Spectral().update_basis(x, basis, *given))
    assert flops(POWER_STEP, x, basis, *given) == flops(Spectral().update_basis, x, basis, *given) > 0


def test_fake_tensors_are_laid_out_as_real_ones() -> None:
    how, x, basis = Spectral(rank=4), anisotropic(300, 64).bfloat16().T, torch.randn(300, 4).T
    mode = FakeTensorMode(allow_non_fake_inputs=True)  # the seed
    for run, given in ((fresh, [how, x]), (fresh, [how, x, basis, torch.tensor([False])]), (POWER_STEP, [x, basis])):
        real = run(*given)
        with mode:
            fake = run(*[mode.from_tensor(t) if isinstance(t, Tensor) else t for t in given])
        assert (fake.shape, fake.stride(), fake.dtype) == (real.shape, real.stride(), real.dtype)


def test_written_out_again() -> None:
    """As ordinary ops, each with its settings."""
    x, basis = anisotropic(300, 64), torch.linalg.qr(torch.randn(64, 4))[0].T
    ways = [Spectral(rank=4, **settings) for settings in SETTINGS]

    def run(x: Tensor, basis: Tensor, stale: Tensor, seed: Tensor) -> list[Tensor]:
        bases = [fresh(how, x, *kept, seed=seed) for how in ways for kept in ((), (basis, stale))]
        return [*bases, POWER_STEP(x, basis), POWER_STEP(x, basis, x @ basis.T)]

    for stale in (torch.tensor([False]), torch.tensor([True])):
        gm = make_fx(run, tracing_mode="fake")(x, basis, stale, SEED)
        assert decompose_bases(gm.graph) == 2 * len(ways) + 2
        assert not [n for n in gm.graph.nodes if n.target in (FRESH_BASIS, POWER_STEP)]
        gm.recompile()
        for found, expected in zip(gm(x, basis, stale, SEED), run(x, basis, stale, SEED), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


class Count(TorchDispatchMode):
    """How often the operators are called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (FRESH_BASIS, POWER_STEP):
            self.calls.append(func.name())
        return func(*args, **(kwargs or {}))


class Own(Spectral):
    """A user's own, which makes a basis in another way."""

    def fresh_basis(self, x: Tensor, seed: Tensor | None, *, stream: int = 0, rank: int | None = None) -> Tensor:
        return torch.eye(x.shape[1])[: int(self.rank)]


@pytest.mark.parametrize(
    ("how", "calls"),
    [
        (Spectral(rank=4, refresh=3), ["metis::power_step", "metis::fresh_basis"]),
        (Spectral(rank=4, refresh=3, track=False), ["metis::fresh_basis"]),
        (Chain(steps=(Mean(), Spectral(rank=4, refresh=3))), ["metis::power_step", "metis::fresh_basis"]),
        (Own(rank=4, refresh=3), ["metis::power_step"]),
    ],
    ids=["spectral", "not tracked", "chain", "a class of the user's"],
)
@pytest.mark.parametrize("count", [0.0, 1.0, 2.0, 3.0])
def test_the_next_basis_is_the_same_by_operators(how: Any, calls: list[str], count: float) -> None:
    x, basis = anisotropic(300, 64), torch.linalg.qr(torch.randn(64, 4))[0].T
    args: Any = (how, x, basis, torch.tensor([count]))
    expected = next_basis(*args, axis=1, seed=SEED)
    with using(GraphOperators()), Count() as counted:
        found = next_basis(*args, axis=1, seed=SEED)
    assert counted.calls == calls
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
