"""With quantization taken out of the graph, every way to split a linear's operands gives the plain linear."""

from __future__ import annotations

import pytest
from by_hand import relative_error
from graphs import capture_graphs, sites_of
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from torch import nn, randn
from treatments import ROLES, SPLITS, Treatment, policy
from without_quantization import ROUNDING, without_quantization
from written_out import values_for

SETS = {"weight": (21, 40, 24), "activation": (33, 17, 5), "gradient": (1, 40, 50), "all": (2, 3, 2)}
ONE_TOKEN = (1, 17, 48)


def check(treatments: list[Treatment], shape: tuple[int, int, int]) -> None:
    """Output and both gradients of a linear of [tokens, inputs] to outputs."""
    tokens, inputs, outputs = shape
    x = randn(tokens, inputs, requires_grad=True)
    captured = capture_graphs(nn.Linear(inputs, outputs, bias=False), x, policy=policy(*treatments))
    assert {s.gemm: s.reason for s in sites_of(captured)} == dict.fromkeys(("fprop", "dgrad", "wgrad"))
    before, after = captured.graphs[0].joint_before, captured.graphs[0].joint_after
    assert before is not None
    assert after is not None
    values = values_for(before).values()
    expected = before(*(v.clone() for v in values))
    actual = without_quantization(after)(*(v.clone() for v in values))
    assert sum(v is not None for v in expected) == 3
    for a, e in zip(actual, expected, strict=True):
        assert (a is None) == (e is None)
        assert a is None or relative_error(a, e) < ROUNDING, tuple(a.shape)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("operands", SETS)
def test_every_split_of_every_operand(split: str, operands: str) -> None:
    check([("nvfp4", split if operands in (role, "all") else None) for role in ROLES], SETS[operands])


sizes = st.integers(17, 50)  # Inductor writes out the smallest products of one token on a CPU before the pass sees them
splits = st.sampled_from([None, *SPLITS])


@settings(max_examples=12, deadline=None, derandomize=True, database=None, phases=(Phase.explicit, Phase.generate))
@given(st.tuples(splits, splits, splits), st.booleans(), st.tuples(st.integers(1, 40), sizes, sizes))
@example(("chain", "chain", "chain"), False, ONE_TOKEN)
@example(("compensated", "compensated chain, kept", "spectral, kept"), True, ONE_TOKEN)
@example(("mean as published", "user's own", "spectral as published"), True, (37, 18, 2))
def test_any_splits_together(chosen: tuple[str | None, ...], turned: bool, shape: tuple[int, int, int]) -> None:
    """A conditioning of its own for each operand, with a Hadamard transform of all three or none."""
    check([("turned" if turned else "nvfp4", split) for split in chosen], shape)


@pytest.mark.parametrize("quantizer", ["stochastic, turned", "eden, turned"])
@pytest.mark.parametrize("split", [None, "mean, residual"])
def test_fresh_signs_cancel(quantizer: str, split: str | None) -> None:
    check([(quantizer, None), (quantizer, split), (quantizer, split)], (21, 40, 24))
