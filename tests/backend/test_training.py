"""backend="metis" against eager training with the same quantization written by hand: losses and all gradients.

Compiled by Inductor, with the tolerance of `by_hand`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from by_hand import BFLOAT16_DRAWS, SAME_DRAWS, SUMMATION_ORDER, ByHand, assert_same, gradients, relative_error, uniform
from tiny import MLP, NEAREST, NEAREST_POLICY, STOCHASTIC_POLICY, Attention, Tied
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import metis_compile
from metis_compile.numerics import uniform_noise

OPTIONS = {"policy": NEAREST_POLICY}


def compiled(model: Callable[..., Any], **kwargs: Any) -> Any:
    return torch.compile(model, backend="metis", options=OPTIONS, **kwargs)


def by_hand() -> AbstractContextManager[Any]:
    return ByHand(uniform(NEAREST))


def step(run: Callable[..., Tensor], model: nn.Module, *inputs: Tensor) -> dict[str, Any]:
    """The loss, the gradients of the parameters and of inputs that need one."""
    loss = run(*inputs).square().mean()
    loss.backward()
    found: dict[str, Any] = {"loss": loss.detach(), **gradients(model)}
    for i, x in enumerate(inputs):
        if x.requires_grad:
            found[f"input {i}"], x.grad = x.grad, None
    return found


def check(
    model: nn.Module, *inputs: Tensor, tolerance: float = SAME_DRAWS, reference: Any = None, **kwargs: Any
) -> None:
    actual = step(compiled(model, **kwargs), model, *inputs)
    with by_hand():
        expected = step(reference or model, model, *inputs)
    assert_same(actual, expected, tolerance)


def test_one_linear_is_exact_to_summation_order() -> None:
    check(nn.Linear(32, 48), torch.randn(40, 32, requires_grad=True), tolerance=SUMMATION_ORDER, fullgraph=True)


def test_the_tolerance_sees_an_unquantized_operand() -> None:
    model, x = MLP(), torch.randn(40, 32)
    actual = step(compiled(model), model, x)
    for gemm in ("fprop", "dgrad", "wgrad"):
        specs = uniform(NEAREST)
        specs[gemm] = dict.fromkeys(specs[gemm])
        with ByHand(specs):
            other = step(model, model, x)
        assert max(relative_error(actual[n], other[n]) for n in other) > 2 * SAME_DRAWS, gemm


def test_mlp_with_ragged_tokens() -> None:
    check(MLP(), torch.randn(3, 7, 32, requires_grad=True), fullgraph=True)


def test_attention() -> None:
    check(Attention(), torch.randn(2, 9, 32, requires_grad=True), fullgraph=True)


def test_tied_weight() -> None:
    model, tokens = Tied(), torch.randint(0, 32, (2, 11))
    check(model, tokens, fullgraph=True)


def test_no_grad_and_eval() -> None:
    model, x = MLP(dropout=0.5).eval(), torch.randn(5, 32)
    run = compiled(model, fullgraph=True)
    with by_hand():
        expected = model(x)
    with torch.no_grad():
        assert_same(run(x), expected, SAME_DRAWS)
    with torch.inference_mode():
        assert_same(run(x), expected, SAME_DRAWS)


def test_gradient_accumulation() -> None:
    model = MLP()
    run = compiled(model)
    batches = [torch.randn(16, 32) for _ in range(3)]
    for x in batches:
        run(x).square().mean().backward()
    actual = gradients(model)
    with by_hand():
        for x in batches:
            model(x).square().mean().backward()
    assert_same(actual, gradients(model), SAME_DRAWS)


@pytest.mark.parametrize("reentrant", [False, True], ids=["nonreentrant", "reentrant"])
def test_checkpoint_inside_the_model(reentrant: bool) -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = MLP(), MLP()

        def forward(self, x: Tensor) -> Tensor:
            x = checkpoint(self.first, x, use_reentrant=reentrant)
            return checkpoint(self.second, x, use_reentrant=reentrant)

    model = Checkpointed()

    def without_checkpoint(x: Tensor) -> Tensor:
        return model.second(model.first(x))

    check(model, torch.randn(16, 32, requires_grad=True), reference=without_checkpoint)


STOCHASTIC_ACTIVATIONS = metis_compile.Policy.from_toml(
    """
    [recipe.stochastic]
    weight = { format = "nvfp4", rounding = "stochastic" }
    activation = { format = "nvfp4", rounding = "stochastic" }
    gradient = { format = "nvfp4", rounding = "stochastic" }
    [[rule]]
    recipe = "stochastic"
    """
)


@pytest.mark.parametrize("inside", [True, False], ids=["inside", "outside"])
def test_checkpointed_forward_draws_the_same_bits(inside: bool) -> None:
    """With a checkpoint the forward runs twice: with the same draws, its gradients are those without a checkpoint."""
    model, x = MLP(), torch.randn(16, 32)
    options = {"policy": STOCHASTIC_ACTIVATIONS}
    if inside:

        def forward(x: Tensor) -> Tensor:
            return checkpoint(model, x, use_reentrant=False)

        recomputed = torch.compile(forward, backend="metis", options=options)
    else:
        inner = torch.compile(model, backend="metis", options=options)

        def recomputed(x: Tensor) -> Tensor:
            return checkpoint(inner, x, use_reentrant=False)

    results = []
    for run in (recomputed, torch.compile(model, backend="metis", options=options)):
        torch.manual_seed(3)
        results.append(step(run, model, x))
    again = torch.compile(model, backend="metis", options=options)
    torch.manual_seed(4)
    other = step(again, model, x)
    assert relative_error(other["up.weight"], results[1]["up.weight"]) > 0.02, "another seed draws other bits"
    assert_same(results[0], results[1], SAME_DRAWS)


def test_stochastic_gradients_use_the_documented_noise() -> None:
    model, x = MLP(), torch.randn(24, 32)
    with metis_compile.capture() as captured:
        run = torch.compile(model, backend="metis", options={"policy": STOCHASTIC_POLICY, "fallback_random": True})
        torch.manual_seed(7)
        actual = step(run, model, x)
    streams = {}
    for site in captured.graphs[0].sites:
        for operand in site.operands:
            if operand.role == "gradient":
                pointer = model.get_parameter(site.weights[0]).data_ptr()
                streams[pointer, site.gemm] = operand.quantized.args[4]
    torch.manual_seed(7)
    seed = torch.randint(0, 2**63 - 1, [1])
    with ByHand(uniform(NEAREST, "nvfp4 1x16 stochastic round_up"), seed=seed, streams=streams):
        expected = step(model, model, x)
    assert_same(actual, expected, SAME_DRAWS)
    assert len(set(streams.values())) == len(streams), "each tensor draws from a stream of its own"
    assert uniform_noise(seed, 1, (4,)).tolist() != uniform_noise(seed, 2, (4,)).tolist()


def test_fresh_noise_every_step_and_reproducible() -> None:
    model, x = nn.Linear(32, 32), torch.randn(32, 32)
    run = torch.compile(model, backend="metis", options={"policy": STOCHASTIC_POLICY})
    torch.manual_seed(1)
    first, second = (step(run, model, x)["weight"] for _ in range(2))
    torch.manual_seed(1)
    again = step(run, model, x)["weight"]
    assert not torch.equal(first, second)
    assert torch.equal(first, again)


# Inductor keeps what it fuses in float32; with this it rounds to bfloat16 where eager does
EAGER_CASTS = {**OPTIONS, "emulate_precision_casts": True}
casts = pytest.mark.skipif(torch.__version__ < "2.13", reason="Inductor's C++ takes this option from torch 2.13 on")


@casts
def test_autocast_bfloat16() -> None:
    model, x = MLP(), torch.randn(24, 32)
    run = torch.compile(model, backend="metis", options=EAGER_CASTS, fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16):
        actual = step(run, model, x)
        with by_hand():
            expected = step(model, model, x)
    assert_same(actual, expected, BFLOAT16_DRAWS)


@casts
def test_bfloat16_model() -> None:
    model, x = MLP().bfloat16(), torch.randn(24, 32, dtype=torch.bfloat16)
    actual = step(torch.compile(model, backend="metis", options=EAGER_CASTS, fullgraph=True), model, x)
    with by_hand():
        expected = step(model, model, x)
    assert_same(actual, expected, BFLOAT16_DRAWS)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_low_precision_linear_accumulates_in_float32(dtype: torch.dtype) -> None:
    x = torch.randn(16, 32, dtype=dtype, requires_grad=True)
    model = nn.Linear(32, 32, dtype=dtype)
    check(model, x, fullgraph=True, tolerance=1e-3)  # one output in some thousand rounds the other way


def test_dynamic_tokens_do_not_recompile() -> None:
    from torch._dynamo.utils import counters

    model = MLP()
    run = compiled(model, dynamic=True, fullgraph=True)
    counters.clear()
    for batch, tokens in ((2, 12), (3, 13), (5, 16), (4, 31)):
        x = torch.randn(batch, tokens, 32, requires_grad=True)
        actual = step(run, model, x)
        with by_hand():
            expected = step(model, model, x)
        assert_same(actual, expected, SAME_DRAWS)
    assert counters["stats"]["unique_graphs"] == 1


def test_graph_break() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 32)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.first(x))
            torch._dynamo.graph_break()
            return self.second(x)

    check(Broken(), torch.randn(16, 32, requires_grad=True))


def test_modules_compiled_one_by_one() -> None:
    model, x = nn.Sequential(MLP(), MLP()), torch.randn(16, 32)
    plain = copy.deepcopy(model)
    for block in model:
        block.compile(backend="metis", options=OPTIONS)
    actual = step(model, model, x)
    with by_hand():
        expected = step(plain, plain, x)
    assert_same(actual, expected, SAME_DRAWS)


def test_dropout() -> None:
    model, x = MLP(dropout=0.5), torch.randn(24, 32)
    run = torch.compile(model, backend="metis", options={**OPTIONS, "fallback_random": True})
    torch.manual_seed(5)
    actual = step(run, model, x)
    torch.manual_seed(5)
    with by_hand():
        expected = step(model, model, x)
    assert_same(actual, expected, SAME_DRAWS)


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(32, 32)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.calls.add_(1)
        x = x.transpose(0, 1)
        y = self.linear(x)
        y.mul_(2).relu_()
        return y, x[1:]


def test_in_place_non_contiguous_and_aliasing_outputs() -> None:
    model = InPlace()
    run = compiled(model, fullgraph=True)
    x = torch.randn(32, 20).T.contiguous().T  # strides (1, 32)
    results = []
    for call, context in ((run, nullcontext()), (model, by_hand())):
        with context:
            y, view = call(x)
            y.sum().backward()
        assert view._base is x or view.data_ptr() == x[:, 1:].data_ptr()
        results.append({"y": y.detach(), **gradients(model)})
    assert_same(*results, SAME_DRAWS)
    assert model.calls == 2


def test_frozen_weight_and_adapter() -> None:
    class LoRA(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base = nn.Linear(32, 32)
            self.base.requires_grad_(False)
            self.a, self.b = nn.Linear(32, 16, bias=False), nn.Linear(16, 32, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.base(x) + self.b(self.a(x))

    model = LoRA()
    check(model, torch.randn(16, 32), fullgraph=True)
    assert model.base.weight.grad is None


def test_one_weight_in_two_linears_and_used_twice() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 32)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.second(torch.tanh(self.first(torch.tanh(self.first(x)))))

    check(Shared(), torch.randn(16, 32, requires_grad=True), fullgraph=True)


def test_training_falls_like_the_reference() -> None:
    """Twenty optimizer steps: the compiled curve stays on the one by hand."""
    x, y = torch.randn(64, 32), torch.randn(64, 32)
    curves = []
    start = MLP()
    for hand in (False, True):
        model = copy.deepcopy(start)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        run = model if hand else compiled(model)
        losses = []
        with by_hand() if hand else nullcontext():
            for _ in range(20):
                loss = F.mse_loss(run(x), y)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                losses.append(float(loss.detach()))
        curves.append(losses)
    assert curves[0][-1] < 0.9 * curves[0][0]
    assert curves[0] == pytest.approx(curves[1], rel=2e-2)
