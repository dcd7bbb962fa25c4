"""Split operands in the graph: the papers' formulas, and what is shared and saved."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graphs import capture_graphs, sites_of
from read_in_wgrad import RULES, Two
from torch import Tensor, fx, nn
from written_out import Values

from metis_compile import Policy
from metis_compile.conditioning import Spectral
from metis_compile.numerics import QuantSpec, fake_quantize, uniform_noise
from metis_compile.numerics.noise import stream_seed
from metis_compile.ops.quantization import DEQUANTIZE, QUANTIZE
from metis_compile.ops.state import LOAD
from metis_compile.passes.graph.inline import Inliner

SPLITS = {
    "mean": '"mean"',
    "mean as published": '{ kind = "mean", factors = "nvfp4", fold = false, partner = "residual" }',
    "spectral": '{ kind = "spectral", rank = 3, refresh = 1 }',
    "spectral, compensated": '{ kind = "spectral", rank = 3, refresh = 1, compensate = true }',
    "mean and spectral, compensated": '["mean", { kind = "spectral", rank = 3, refresh = 1, compensate = true }]',
}


def policy(weight: str | None = None, activation: str | None = None, gradient: str | None = None) -> Policy:
    def treatment(split: str | None) -> str:
        return '{ format = "nvfp4"' + (f", split = {split}" if split else "") + " }"

    return Policy.from_toml(
        f"""
        [recipe.r]
        weight = {treatment(weight)}
        activation = {treatment(activation)}
        gradient = {treatment(gradient)}
        [[rule]]
        has_weight = true
        recipe = "r"
        """
    )


def joint(
    tokens: int, inputs: int, outputs: int, chosen: Policy, quantized: tuple[str, ...] = ("fprop", "dgrad", "wgrad")
) -> tuple[fx.GraphModule, fx.GraphModule]:
    model = nn.Linear(inputs, outputs, bias=False)
    captured = capture_graphs(model, torch.randn(tokens, inputs, requires_grad=True), policy=chosen)
    assert all(s.reason is None for s in sites_of(captured) if s.gemm in quantized)
    graph = captured.graphs[0]
    assert graph.joint_before is not None
    assert graph.joint_after is not None
    return graph.joint_before, graph.joint_after


def inputs_of(gm: fx.GraphModule, seed: int = 0) -> list[Tensor]:
    """Values with a mean and a few large directions, as activations have."""
    generator = torch.Generator().manual_seed(seed)
    values = []
    for node in gm.graph.find_nodes(op="placeholder"):
        rows, columns = node.meta["val"].shape
        x = torch.randn(rows, columns, generator=generator)
        x += 3 * torch.randn(rows, 1, generator=generator) * torch.randn(1, columns, generator=generator)
        values.append(x + 2 * torch.randn(1, columns, generator=generator))
    return values


def q(x: Tensor, axis: int) -> Tensor:
    return fake_quantize(x, QuantSpec.make("nvfp4"), axis)


def roles(gm: fx.GraphModule, values: list[Tensor], inputs: int, outputs: int) -> tuple[Tensor, Tensor, Tensor]:
    """X, W and G among a joint graph's inputs, by shape."""
    (w,) = [v for v in values if v.shape == (outputs, inputs)]
    (x,) = [v for v in values if v.shape[1] == inputs and v is not w]
    (g,) = [v for v in values if v.shape[1] == outputs and v is not w]
    return x, w, g


def test_averis_as_published() -> None:
    """Y = Q(X_R) Q(W)^T + 1 Q(mu) Q(W)^T, dX alike; dW = Q(G_R)^T Q(X_R) + mu_G a^T + b mu_X + t mu_G mu_X."""
    published = SPLITS["mean as published"]
    before, after = joint(48, 32, 16, policy(activation=published, gradient=published))
    values = inputs_of(before)
    x, w, g = roles(after, values, 32, 16)
    mu_x, mu_g = x.mean(0, keepdim=True), g.mean(0, keepdim=True)
    x_r, g_r, t = x - mu_x, g - mu_g, len(x)
    mu_x, mu_g = q(mu_x, 1), q(mu_g, 1)
    y = q(x_r, 1) @ q(w, 1).T + mu_x @ q(w, 1).T
    dx = q(g_r, 1) @ q(w, 0) + mu_g @ q(w, 0)
    a, b = q(x_r, 0).sum(0, keepdim=True), q(g_r, 0).sum(0, keepdim=True)
    dw = q(g_r, 0).T @ q(x_r, 0) + mu_g.T @ a + b.T @ mu_x + t * mu_g.T @ mu_x
    found = {tuple(v.shape): v for v in after(*values) if v is not None}
    for expected in (y, dx, dw):
        torch.testing.assert_close(found[tuple(expected.shape)], expected, rtol=1e-5, atol=1e-3)


def test_mean_of_the_activation_with_a_high_partner() -> None:
    """Y = Q(R) Q(W)^T + mu W^T and dW = Q(G)^T Q(R) + (G^T 1) mu, mu rounded to bfloat16 and folded."""
    before, after = joint(48, 32, 16, policy(activation=SPLITS["mean"]))
    values = inputs_of(before)
    x, w, g = roles(after, values, 32, 16)
    mu = x.mean(0, keepdim=True).bfloat16().float()
    y = q(x - mu, 1) @ q(w, 1).T + mu @ w.T
    dw = q(g, 0).T @ q(x - mu, 0) + g.sum(0, keepdim=True).T @ mu
    found = {tuple(v.shape): v for v in after(*values) if v is not None}
    for expected in (y, q(g, 1) @ q(w, 0), dw):
        torch.testing.assert_close(found[tuple(expected.shape)], expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("role", ["activation", "gradient"])
@pytest.mark.parametrize("name", ["spectral", "spectral, compensated", "mean and spectral, compensated"])
def test_a_compensated_operand_is_exact_along_what_is_kept(name: str, role: str) -> None:
    """Multiplied by a unit matrix that is not quantized, it comes out as the product reads it."""
    treatments = {"activation": "high", "gradient": "high", role: f'{{ format = "nvfp4", split = {SPLITS[name]} }}'}
    chosen = Policy.from_toml(
        "[recipe.r]\nweight = 'high'\n"
        + "".join(f"{key} = {value}\n".replace("= high", "= 'high'") for key, value in treatments.items())
        + "[[rule]]\nrecipe = 'r'"
    )
    sizes = {"activation": (32, 64), "gradient": (64, 32)}[role]
    _, after = joint(48, *sizes, chosen, quantized=("fprop" if role == "activation" else "dgrad", "wgrad"))
    values = inputs_of(after)
    x, w, g = roles(after, values, *sizes)
    w.copy_(torch.eye(*w.shape))
    run = Values(after)
    found = {tuple(v.shape): v for v in run.run(*values) if v is not None}
    whole, read = (x, found[48, 64][:, :32]) if role == "activation" else (g, found[48, 64][:, :32])
    (residual,) = {run.of[n.args[0]] for n in after.graph.find_nodes(op="call_function", target=QUANTIZE)}
    thin = whole - residual
    basis = torch.linalg.svd(thin - thin.mean(0))[2][:3]
    along = float(((whole - read) @ basis.T).norm() / (whole - read).norm())
    assert along < 0.01 if "compensated" in name else along > 0.1, "but for the basis being rounded to bfloat16"
    if role == "activation":  # wgrad reads what was saved: the factors as they were before
        torch.testing.assert_close(found[tuple(w.shape)], g.T @ (q(residual, 0) + thin), rtol=1e-4, atol=1e-3)


def test_splitting_once_for_all_who_read() -> None:
    """fprop and wgrad share the activation's residual; dgrad and wgrad the gradient's."""
    _, after = joint(32, 32, 16, policy(activation=SPLITS["spectral"], gradient=SPLITS["mean"]))
    sources = [n.args[0] for n in after.graph.find_nodes(op="call_function", target=QUANTIZE)]
    assert len(sources) == 6
    assert len(set(sources)) == 3, "W, the residual of X and that of G, each blocked twice"


def test_wgrad_saves_the_packed_residual_and_thin_factors() -> None:
    tokens, inputs, rank = 256, 64, 3
    chosen = policy(activation=SPLITS["spectral"])
    captured = capture_graphs(
        nn.Linear(inputs, 32, bias=False), torch.randn(tokens, inputs, requires_grad=True), policy=chosen
    )
    kept = sum(t.nbytes for t in captured.graphs[0].saved if not t.is_parameter)
    assert kept <= tokens * inputs * 4.5 / 8 + 4 + rank * (tokens + inputs) * 4


def test_batched_products_are_left_with_the_reason() -> None:
    class Batched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(2, 32, 16))

        def forward(self, x: Tensor) -> Tensor:
            return torch.bmm(x, self.weight)

    captured = capture_graphs(
        Batched(), torch.randn(2, 16, 32, requires_grad=True), policy=policy(activation=SPLITS["mean"])
    )
    assert all("a split is of matrices" in str(s.reason) for s in sites_of(captured) if s.gemm != "dgrad")


def test_hadamard_changes_what_is_quantized() -> None:
    x = torch.zeros(32, 32)
    x[:, 0] = 100.0
    x += 0.1 * torch.randn(32, 32)
    errors = []
    for hadamard in ("", ', hadamard = "fixed"'):
        t = f'{{ format = "nvfp4"{hadamard} }}'
        chosen = Policy.from_toml(f"[recipe.r]\nweight = {t}\nactivation = {t}\ngradient = {t}\n[[rule]]\nrecipe = 'r'")
        before, after = joint(32, 32, 32, chosen)
        values = [x, *inputs_of(before)[1:]]
        errors.append(float((after(*values)[0] - before(*values)[0]).norm()))
    assert errors[0] != errors[1]


def test_hadamard_on_one_operand_is_left_with_the_reason() -> None:
    chosen = Policy.from_toml(
        """
        [recipe.r]
        weight = "nvfp4"
        activation = { format = "nvfp4", hadamard = true }
        gradient = { format = "nvfp4", hadamard = true }
        [[rule]]
        recipe = "r"
        """
    )
    captured = capture_graphs(nn.Linear(32, 32), torch.randn(16, 32, requires_grad=True), policy=chosen)
    reasons = {s.gemm: s.reason for s in sites_of(captured)}
    assert reasons["wgrad"] is None
    assert "cancels only if both operands have the same" in reasons["fprop"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_that_feeds_a_product(dtype: torch.dtype) -> None:
    """The first is replaced, for its tails or to be done in float32; the second reads what took its place."""
    model = nn.Sequential(nn.Linear(32, 48, bias=False), nn.Linear(48, 16, bias=False)).to(dtype)
    x = torch.randn(20, 32, dtype=dtype, requires_grad=True)
    captured = capture_graphs(model, x, policy=policy(activation=SPLITS["mean"], gradient=SPLITS["mean"]))
    assert all(s.reason is None for s in sites_of(captured))


def test_quantized_factors_are_rounded_by_operators() -> None:
    """Four: two factors for each of fprop and wgrad, with the reference's bits."""
    spec = QuantSpec.make("nvfp4", rounding="stochastic")
    split = f'{{ kind = "spectral", rank = 3, factors = "{spec}", fold = false, refresh = 1 }}'
    _, after = joint(48, 32, 16, policy(activation=split))
    values = Values(after)
    torch.manual_seed(5)
    values.run(*inputs_of(after))
    torch.manual_seed(5)
    seed = torch.randint(2**63 - 1, [1])
    found = 0
    for node in after.graph.find_nodes(op="call_function", target=DEQUANTIZE):
        quantized: Any = node.args[0][0].args[0]  # type: ignore[index, union-attr]
        factor = values.of[quantized.args[0]]
        if 3 in factor.shape:
            at = int(values.of[quantized.args[3]]), int(quantized.args[4])
            noise = uniform_noise(torch.tensor([at[0]]), at[1], factor.shape)
            assert torch.equal(values.of[node], fake_quantize(factor, spec, quantized.args[2], noise))
            assert at[0] in [int(stream_seed(seed, n)) for n in range(1, 5)]
            found += 1
    assert found == 4


def test_one_trace_serves_all_tensors_of_a_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each draws from a stream of its own all the same, as the reference does."""
    traced: list[Any] = []
    trace = Inliner._trace
    monkeypatch.setattr(Inliner, "_trace", lambda self, *args: traced.append(args) or trace(self, *args))
    split = '{ kind = "spectral", rank = 3, factors = "nvfp4 1x16 stochastic round_up", refresh = 1 }'
    model = nn.Sequential(nn.Linear(32, 32, bias=False), nn.Linear(32, 32, bias=False))
    captured = capture_graphs(model, torch.randn(48, 32), policy=policy(activation=split))
    assert len(traced) == 2, "along the features and along the tokens"

    after = captured.graphs[0].joint_after
    assert after is not None
    values = Values(after)
    torch.manual_seed(5)
    values.run(*inputs_of(after))
    torch.manual_seed(5)
    seed = torch.randint(2**63 - 1, [1])
    how = Spectral(rank=3, factors="nvfp4 1x16 stochastic round_up", refresh=1)
    streams = []
    for node in after.graph.find_nodes(op="call_function", target=QUANTIZE):
        residual, axis = node.args[0], node.args[2]
        if "activation" in node.name and residual.meta["val"].shape == (48, 32):
            x, got = values.of[residual.args[0]], values.of[residual]
            off = [how.split(x, axis=axis, seed=seed, stream=n).residual - got for n in range(5)]
            # a rounding error more or less may round an element of a factor the other way
            streams += [n for n in range(5) if (off[n].abs() > 1e-3 * got.abs().max()).float().mean() < 0.02]
    assert sorted(streams) == [1, 2, 3, 4]


@pytest.mark.parametrize(("reads", "out", "gradients"), [(1, 192, [2]), (3, 192, [2, 2, 2]), (1, 576, [3])])
def test_an_auto_rank_is_of_all_linears_that_read_together(reads: int, out: int, gradients: list[int]) -> None:
    """Of 192 features to 192: 2. To three times as many, in one linear or in three: 3; backward from there, 3 too."""

    class Together(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linears = nn.ModuleList(nn.Linear(192, out, bias=False) for _ in range(reads))

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([linear(x) for linear in self.linears])

    auto = '{ kind = "spectral", rank = "auto" }'
    x = torch.randn(2048, 192, requires_grad=True)
    captured = capture_graphs(Together(), x, policy=policy(activation=auto, gradient=auto))
    after = captured.graphs[0].joint_after
    assert after is not None
    kept = {n.name: n.meta["val"].shape for n in after.graph.find_nodes(op="call_function", target=LOAD)}
    ranks = {role: [shape[0] for name, shape in kept.items() if role in name] for role in ("activation", "gradient")}
    assert ranks == {"activation": [2 if reads * out == 192 else 3], "gradient": gradients}


@pytest.mark.parametrize("split", ["mean", "spectral"])
def test_one_sequence_is_a_matrix_like_several(split: str) -> None:
    """[1, tokens, features] is split, and saved, as [tokens, features] is."""
    chosen = policy(activation=SPLITS[split], gradient=SPLITS[split])
    x = torch.randn(40, 36)
    found = []
    for tokens in (x, x[None]):
        torch.manual_seed(0)
        model = nn.Linear(36, 21)
        leaf = tokens.clone().requires_grad_()
        captured = capture_graphs(model, leaf, policy=chosen)
        assert [s.reason for s in sites_of(captured)] == [None] * 3
        assert all(len(s.lhs.base.meta["val"].shape) == 2 for s in sites_of(captured) if s.lhs)
        found.append((leaf.grad.reshape(40, 36), model.weight.grad, model.bias.grad, captured.saved_bytes))  # type: ignore[union-attr]
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b


@pytest.mark.parametrize(
    ("activation", "gradient"),
    [
        ("split = { kind = 'spectral', rank = 2, factors = 'nvfp4' }", ""),
        ("split = 'mean'", ""),
        ("hadamard = 'fixed'", "hadamard = 'fixed'"),
    ],
    ids=["spectral", "mean", "hadamard"],
)
def test_what_is_shared_is_made_before_the_first_that_reads_it(activation: str, gradient: str) -> None:
    """Of two linears that read one tensor, the first reads it quantized in wgrad alone, in a format of its own."""

    def recipe(name: str, format: str) -> str:
        operands = {"weight": "", "activation": activation, "gradient": gradient}
        tables = (f"{role} = {{ {', '.join(filter(None, [f'format = {format!r}', more]))} }}\n"
                  for role, more in operands.items())  # fmt: skip
        return f"[recipe.{name}]\n{''.join(tables)}"

    text = recipe("first", "mxfp8") + recipe("second", "nvfp4") + RULES
    found = sites_of(capture_graphs(Two(), torch.randn(32, 32, requires_grad=True), policy=Policy.from_toml(text)))
    assert {(s.gemm, s.module) for s in found if s.reason is None} >= {("wgrad", "up"), ("wgrad", "down")}
