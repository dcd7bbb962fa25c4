"""Grouped products of a mixture's experts: each expert's is what `conditioning.product` writes out, on the same draws.

In forward and dgrad a group is of rows; in wgrad of what is contracted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers.integrations.moe  # noqa: F401 (registers the operators)
from by_hand import SUMMATION_ORDER, relative_error
from graphs import capture_graphs, eager_backend
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from treatments import ROLES, SPLITS, policy
from written_out import Linear, Result
from written_out_experts import Experts, expert_results, experts_graph

from metis_compile import Policy

TOKENS, INPUTS, OUTPUTS = 150, 112, 136
ENDS = [37, 37, 101, 150]  # one expert without tokens, no boundary between two blocks
STRAYS = [37, 37, 101, 141]  # and tokens that belong to none


def check(linear: Linear, reasons: tuple[str, ...] = ()) -> dict[str, Result]:
    left = {site.gemm for site in linear.sites if site.reason is not None}
    assert left == set(reasons)
    found = expert_results(linear, OUTPUTS, INPUTS)
    for name, (actual, expected, exact) in found.items():
        assert actual.dtype == expected.dtype
        if name in left:
            continue
        tolerance = 2**-8 if actual.dtype == torch.bfloat16 else SUMMATION_ORDER
        assert relative_error(actual.float(), expected.float()) < tolerance, name
        assert relative_error(actual.float(), exact) > 0.01, name
    return found


@pytest.mark.parametrize("offs", [ENDS, STRAYS], ids=["all in groups", "strays"])
@pytest.mark.parametrize("preset", ["nvfp4", "averis", "metis", "best", "fp8", "mxfp4", "four-over-six"])
def test_of_presets(preset: str, offs: list[int]) -> None:
    check(experts_graph(preset, TOKENS, INPUTS, OUTPUTS, offs))


@pytest.mark.parametrize("split", [s for s in SPLITS if s != "user's own"])
def test_of_splits_of_tokens(split: str) -> None:
    """The sums of what a mean leaves are zero over all tokens, and not over those of one expert."""
    treated = policy(("nvfp4", None), ("nvfp4", split), ("nvfp4", split))
    check(experts_graph(treated, TOKENS, INPUTS, OUTPUTS, STRAYS))


@pytest.mark.parametrize("role", ["activation", "gradient"])
@pytest.mark.parametrize("split", ["mean, high", "spectral, e4m3 row", "compensated, residual"])
def test_of_one_operand_that_is_split(split: str, role: str) -> None:
    treated = policy(*(("nvfp4", split if role == r else None) for r in ROLES))
    check(experts_graph(treated, TOKENS, INPUTS, OUTPUTS, ENDS))


@pytest.mark.parametrize("split", [None, "mean, high", "spectral, residual"])
def test_beside_weights_that_are_left_high(split: str | None) -> None:
    check(experts_graph(policy(("high", None), ("nvfp4", split), ("nvfp4", split)), TOKENS, INPUTS, OUTPUTS, ENDS))


@pytest.mark.parametrize("preset", ["nvfp4", "averis"])
def test_of_bfloat16(preset: str) -> None:
    """Sizes that aten takes: rows of 16 bytes."""
    check(experts_graph(preset, TOKENS, INPUTS, OUTPUTS, ENDS, dtype=torch.bfloat16))


def test_what_strays_hold_changes_nothing() -> None:
    linear = experts_graph("best", TOKENS, INPUTS, OUTPUTS, STRAYS)
    plain = expert_results(linear, OUTPUTS, INPUTS)
    for value in linear.values.values():
        if value.dim() == 2 and len(value) == TOKENS:
            value[STRAYS[-1] :] = torch.nan
    for name, result in expert_results(linear, OUTPUTS, INPUTS).items():
        assert torch.equal(result.actual, plain[name].actual), name


def test_what_can_not_be_done_of_experts_is_said() -> None:
    split = experts_graph("metis-paper", TOKENS, INPUTS, OUTPUTS, ENDS)
    reasons = {site.gemm: str(site.reason) for site in split.sites}
    assert "weights of experts are a batch" in reasons["fprop"]
    assert reasons["dgrad"] == reasons["fprop"]
    turned = experts_graph("nvidia", TOKENS, INPUTS, OUTPUTS, ENDS)
    reasons = {site.gemm: str(site.reason) for site in turned.sites}
    assert reasons["fprop"] == reasons["dgrad"] == "None"
    assert "would mix those of different experts" in reasons["wgrad"]


def test_what_is_saved_is_packed() -> None:
    """[150, 112] activations in 4.5 bits an element."""
    model = Experts(4, INPUTS, OUTPUTS, torch.float32)
    up = nn.Linear(INPUTS, INPUTS)
    x, offs = torch.randn(TOKENS, INPUTS), torch.tensor(ENDS, dtype=torch.int32)
    captured = capture_graphs(lambda x, offs: model(torch.relu(up(x)), offs), x, offs, policy="nvfp4")
    saved = {t.name: t for graph in captured.graphs for t in graph.saved if not t.is_parameter}
    codes = [t for name, t in saved.items() if "experts" not in name and "codes_wgrad" in name]
    assert (TOKENS // 2, INPUTS) in [t.shape for t in codes]
    assert not any(t.dtype == torch.float32 and t.shape == (TOKENS, INPUTS) for t in saved.values())


def grouped(x: Tensor, weight: Tensor, offs: Tensor) -> Tensor:
    return torch.ops.transformers.grouped_mm_fallback(x, weight, offs)  # type: ignore[no-any-return]


def trained(function: Callable[..., Tensor], *inputs: Tensor, policy: Policy | str = "fp8") -> list[Tensor]:
    """The result and the gradients of the floating inputs, by the rewritten graph."""
    torch.compiler.reset()
    torch.manual_seed(0)
    given = [t.detach().clone().requires_grad_() if t.is_floating_point() else t for t in inputs]
    y = torch.compile(function, backend=eager_backend(policy, fallback_random=True))(*given)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(1)))
    return [y.detach(), *(t.grad for t in given if t.grad is not None)]


X, W, AT = torch.randn(32, 64), torch.randn(2, 48, 64), torch.tensor([16, 27], dtype=torch.int32)
NEAREST = policy(("nvfp4", None), ("nvfp4", None), ("nvfp4", None))
SPLIT = policy(("nvfp4", None), ("nvfp4", "spectral, high"), ("nvfp4", "mean, residual"))


UNSPLIT = pytest.mark.parametrize("how", ["fp8", NEAREST], ids=["fp8", "nvfp4"])
ANY = pytest.mark.parametrize("how", ["fp8", NEAREST, SPLIT], ids=["fp8", "nvfp4", "split"])


class TestLayouts:
    """What lies otherwise in memory is the same to a product, and its tokens are tokens.

    But for a split of tokens that lie as columns: its mean and its basis are of what lies in memory.
    """

    def plain(self, how: Any) -> list[Tensor]:
        return trained(lambda x, w, offs: grouped(x * 1.0, w.mT, offs), X, W, AT, policy=how)

    def same(self, found: list[Tensor], how: Any) -> None:
        for actual, wanted in zip(found, self.plain(how), strict=True):
            actual = actual.mT if actual.shape != wanted.shape else actual
            assert relative_error(actual, wanted) < SUMMATION_ORDER

    @UNSPLIT
    def test_tokens_as_columns(self, how: Any) -> None:
        self.same(trained(lambda x, w, offs: grouped(x.t(), w.mT, offs), X.t().contiguous(), W, AT, policy=how), how)

    @UNSPLIT
    def test_gradients_as_columns(self, how: Any) -> None:
        def function(x: Tensor, w: Tensor, offs: Tensor) -> Tensor:
            return (grouped(x * 1.0, w.mT, offs).t() * 1.0).contiguous().t()

        self.same(trained(function, X, W, AT, policy=how), how)

    @UNSPLIT
    def test_columns_and_batches_of_torch_s_own_operator(self, how: Any) -> None:
        """Backward of tokens as columns multiplies columns; experts of as many tokens each are a batch."""
        bf16, w16 = X.bfloat16(), W.bfloat16()

        def rows(x: Tensor, w: Tensor, offs: Tensor) -> Tensor:
            return torch._grouped_mm(x * 1.0, w.mT, offs=offs)

        def columns(x: Tensor, w: Tensor, offs: Tensor) -> Tensor:
            return torch._grouped_mm((x * 1.0).t(), w.mT, offs=offs)

        def batch(x: Tensor, w: Tensor, offs: Tensor) -> Tensor:
            return torch._grouped_mm((x * 1.0).view(2, 16, 64), w.mT).view(32, 48)

        def bmm(x: Tensor, w: Tensor, offs: Tensor) -> Tensor:
            return torch.bmm((x * 1.0).view(2, 16, 64), w.mT).view(32, 48)

        for function, given, like in ((columns, bf16.t().contiguous(), rows), (batch, bf16, bmm)):
            expected = trained(like, bf16, w16, AT, policy=how)
            for actual, wanted in zip(trained(function, given, w16, AT, policy=how), expected, strict=True):
                actual = actual.mT if actual.shape != wanted.shape else actual
                assert relative_error(actual.float(), wanted.float()) < 2**-8  # of bfloat16, in which results are
        sites = [s for g in capture_graphs(columns, bf16.t().contiguous().requires_grad_(), w16, AT, policy=how).graphs
                 for s in g.sites]  # fmt: skip
        assert [s.gemm for s in sites if s.reason is None] == ["fprop", "dgrad"]

    @ANY
    def test_weights_that_are_not_transposed(self, how: Any) -> None:
        self.same(trained(lambda x, w, offs: grouped(x * 1.0, w, offs), X, W.mT.contiguous(), AT, policy=how), how)

    @ANY
    def test_one_matrix_for_all(self, how: Any) -> None:
        def shared(x: Tensor, w: Tensor, offs: Tensor) -> Tensor:
            return grouped(x * 1.0, w.t().expand(2, -1, -1), offs)

        def apart(x: Tensor, w: Tensor, offs: Tensor) -> Tensor:
            return grouped(x * 1.0, torch.stack([w, w]).mT, offs)

        found, wanted = (trained(f, X, W[0], AT, policy=how) for f in (shared, apart))
        for actual, expected in zip(found, wanted, strict=True):
            assert relative_error(actual, expected) < SUMMATION_ORDER


def test_a_transposed_split_is_near() -> None:
    """Where splits differ by how tensors lie, the products are near those in full precision."""
    found = trained(lambda x, w, offs: grouped(x.t(), w.mT, offs), X.t().contiguous(), W, AT, policy=SPLIT)
    plain = trained(lambda x, w, offs: grouped(x.t(), w.mT, offs), X.t().contiguous(), W, AT, policy="high")
    for actual, wanted in zip(found, plain, strict=True):
        assert 0.01 < relative_error(actual, wanted) < 0.2


@pytest.mark.parametrize("first", ["gate", "up"])
def test_products_that_share_tokens_and_differ_in_policy(first: str) -> None:
    """Tokens are masked once, before the first of them needs it, whichever that is."""

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.up = (Experts(2, 64, 48, torch.float32) for _ in range(2))

        def forward(self, x: Tensor, offs: Tensor) -> Tensor:
            x = torch.relu(x)
            gate, up = (m(x, offs) for m in ((self.gate, self.up) if first == "gate" else (self.up, self.gate)))
            return gate * up

    recipes = "".join(f'[recipe.{n}]\nweight = {{ format = "{n}" }}\nactivation = {{ format = "{n}" }}\n'
                      f'gradient = {{ format = "{n}" }}\n' for n in ("nvfp4", "mxfp8"))  # fmt: skip
    rules = [("up", "wgrad", "mxfp8"), ("gate", "wgrad", "nvfp4")]
    text = recipes + "".join(f'[[rule]]\nmodule = "{m}"\ngemm = "{g}"\nrecipe = "{r}"\n' for m, g, r in rules)
    captured = capture_graphs(Gated(), X.clone().requires_grad_(), AT, policy=Policy.from_toml(text))
    rewritten = {s.module for graph in captured.graphs for s in graph.sites if s.reason is None}
    assert rewritten == {"gate", "up"}


def test_ends_that_change_between_two_products() -> None:
    def function(x: Tensor, w: Tensor, offs: Tensor) -> Tensor:
        first = grouped(x, w.mT, offs)
        offs = offs + 4
        return first + grouped(x, w.mT, offs)

    found, plain = (trained(function, X, W, AT, policy=p) for p in ("fp8", "high"))
    for actual, wanted in zip(found, plain, strict=True):
        assert relative_error(actual, wanted) < 0.08

    def in_place(x: Tensor, w: Tensor, offs: Tensor) -> Tensor:
        y = grouped(x, w.mT, offs)
        offs.add_(4)
        return y

    assert trained(in_place, X, W, AT.clone())[0].shape == (32, 48)


def test_float64_experts_are_left_alone() -> None:
    x, w = X.double().requires_grad_(), W.double()
    captured = capture_graphs(lambda x, w, offs: grouped(x, w.mT, offs), x, w, AT, policy="nvfp4")
    reasons = {str(s.reason) for graph in captured.graphs for s in graph.sites}
    assert reasons == {"experts of a dtype that is not quantized, of two, or whose ends lie on another device"}


def test_weights_that_are_views_of_a_matrix() -> None:
    """What follows the gradient counts on how transformers' own lies in memory."""

    def function(x: Tensor, w: Tensor, offs: Tensor) -> Tensor:
        return grouped(x, w.view(2, 48, 64).mT, offs)

    y, dx, dw = trained(function, X, W.view(96, 64), AT)
    wanted = trained(lambda x, w, offs: grouped(x, w.mT, offs), X, W, AT)
    for actual, expected in zip((y, dx, dw.view(2, 48, 64)), wanted, strict=True):
        assert torch.equal(actual, expected)


def test_weights_that_are_arguments_are_weights() -> None:
    captured = capture_graphs(
        lambda x, w, offs: grouped(x, w.mT * x.mean(), offs), X.clone().requires_grad_(), W, AT, policy="nvfp4"
    )
    found = {s.gemm: s.reason for graph in captured.graphs for s in graph.sites}
    assert found["fprop"] is None


def test_room_for_bases_grows_with_features_alone() -> None:
    """Not with the tokens, of which there are more."""

    def kept(tokens: int) -> dict[str, list[int]]:
        linear = experts_graph("metis", tokens, INPUTS, OUTPUTS, [20, tokens])
        return {part: list(value.shape) for (_, part), value in linear.held.items()}

    assert kept(150) == kept(1500)
    assert kept(150).keys() == {"activation", "gradient"}


class TestOperator:
    """`metis::grouped_mm` against products of slices, in every dtype that it takes, and with groups without tokens."""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
    @pytest.mark.parametrize("offs", [[0, 5, 5, 9], [2, 3, 12, 12]])
    def test_of_rows(self, offs: list[int], dtype: torch.dtype) -> None:
        a, b = torch.randn(12, 8, dtype=dtype), torch.randn(4, 8, 6, dtype=dtype)
        made = torch.ops.metis.grouped_mm(a, b, torch.tensor(offs))
        for group, (start, end) in enumerate(zip([0, *offs], offs, strict=False)):
            # BLAS may sum in another order where matrices lie otherwise in memory; 8 products of about 1 each
            rounded = 0 if dtype == torch.float32 else torch.finfo(dtype).eps
            torch.testing.assert_close(made[start:end], a[start:end] @ b[group], rtol=rounded, atol=1e-5)
        assert not made[offs[-1] :].any()

    @pytest.mark.parametrize("offs", [[0, 5, 5, 9], [2, 3, 12, 12]])
    def test_of_what_is_contracted(self, offs: list[int]) -> None:
        a, b = torch.randn(7, 12), torch.randn(12, 6)
        made = torch.ops.metis.grouped_mm(a, b, torch.tensor(offs, dtype=torch.int32))
        for group, (start, end) in enumerate(zip([0, *offs], offs, strict=False)):
            assert torch.allclose(made[group], a[:, start:end] @ b[start:end], rtol=0, atol=1e-5)

    def test_is_what_torch_has(self) -> None:
        a, b = torch.randn(48, 32, dtype=torch.bfloat16), torch.randn(3, 32, 16, dtype=torch.bfloat16)
        offs = torch.tensor([16, 16, 48], dtype=torch.int32)
        assert torch.allclose(torch.ops.metis.grouped_mm(a, b, offs), torch._grouped_mm(a, b, offs=offs), rtol=2**-7)
        g = torch.randn(48, 16, dtype=torch.bfloat16)
        torch.testing.assert_close(torch.ops.metis.grouped_mm(a.T, g, offs), torch._grouped_mm(a.T, g, offs=offs))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"a": torch.zeros(12, 8, dtype=torch.float64)}, "a must be float32, bfloat16 or float16, got float64"),
            ({"b": torch.zeros(4, 8, 6, dtype=torch.bfloat16)}, "b must be float32, got bfloat16"),
            ({"offs": torch.zeros(4)}, "offs must be int32 or int64, got float32"),
            ({"offs": torch.zeros(4, 1, dtype=torch.int32)}, r"offs must have one dimension, got shape \[4, 1\]"),
            ({"b": torch.zeros(4, 7, 6)}, r"b must have 8 rows, as many as a has columns, got \[4, 7, 6\]"),
            ({"b": torch.zeros(3, 8, 6)}, r"a matrix for each of 4 ends, got shape \[3, 8, 6\]"),
            ({"offs": torch.tensor([3, 2, 5, 6])}, r"offs must ascend from 0 to the 12 tokens, got \[3, 2, 5, 6\]"),
            ({"offs": torch.tensor([3, 4, 5, 13])}, r"offs must ascend from 0 to the 12 tokens, got \[3, 4, 5, 13\]"),
            ({"a": torch.zeros(2, 12, 8)}, r"a matrix and a matrix or a batch of them, got \[2, 12, 8\]"),
        ],
    )
    def test_refuses(self, change: dict[str, Tensor], message: str) -> None:
        given = {"a": torch.zeros(12, 8), "b": torch.zeros(4, 8, 6), "offs": torch.zeros(4, dtype=torch.int32)} | change
        with pytest.raises((TypeError, ValueError), match=f"metis::grouped_mm: .*{message}"):
            torch.ops.metis.grouped_mm(**given)
        if "ascend" not in message:  # values are for who runs it to see
            with FakeTensorMode(allow_non_fake_inputs=True), pytest.raises((TypeError, ValueError), match=message):
                torch.ops.metis.grouped_mm(**given)

    def test_is_kept_out_of_cuda_graphs(self) -> None:
        assert torch.Tag.cudagraph_unsafe in torch.ops.metis.grouped_mm.default.tags

    def test_counts_its_work(self) -> None:
        with FlopCounterMode(display=False) as counter:
            torch.ops.metis.grouped_mm(torch.zeros(12, 8), torch.zeros(4, 8, 6), torch.tensor([3, 6, 9, 12]))
        assert counter.get_total_flops() == 2 * 12 * 8 * 6
