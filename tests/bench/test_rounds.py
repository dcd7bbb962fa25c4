import time

import pytest
import torch

from metis_compile.bench import rounds
from metis_compile.bench.rounds import in_rounds
from metis_compile.bench.turns import WARM_UP


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rounds.FLUSHED, "cpu", 1000)


def test_every_round_has_every_call_in_turning_order() -> None:
    order: list[int] = []
    done: list[int] = []
    times = in_rounds(
        [lambda: order.append(0), lambda: order.append(1), lambda: order.append(2)], 4, "cpu", done.append
    )
    assert order == [0, 1, 2, 2, 1, 0] * 3
    assert done == list(range(1, WARM_UP + 4 + 1))
    assert [len(found) for found in times] == [4, 4, 4]  # the first rounds, which compile, are not among them


def test_times_are_those_of_the_call_itself() -> None:
    slow, quick = in_rounds([lambda: time.sleep(0.02), lambda: None], 3, "cpu", lambda done: None)
    assert min(slow) >= 0.02
    assert max(quick) < 0.02


def test_before_each_call_the_caches_are_filled_with_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str] = []
    flush = torch.Tensor.zero_
    monkeypatch.setattr(torch.Tensor, "zero_", lambda t: happened.append(f"flush {t.nbytes}") or flush(t))
    in_rounds([lambda: happened.append("call")], 1, "cpu", lambda done: None)
    assert happened == ["flush 1000", "call"] * (WARM_UP + 1)


@pytest.mark.gpu
def test_on_a_gpu_times_are_the_devices() -> None:
    x = torch.randn(2**26, device="cuda")
    copy, twice = in_rounds([lambda: x.clone(), lambda: (x.clone(), x.clone())], 8, "cuda", lambda done: None)
    assert 1.5 < sorted(twice)[4] / sorted(copy)[4] < 2.5
    assert sorted(copy)[4] > 2 * x.nbytes / 20e12  # no memory is that fast: it was waited for
