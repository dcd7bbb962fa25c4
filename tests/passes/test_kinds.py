"""What a product is for, by what feeds it and what it feeds; each kind with a product that only looks like one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from graphs import capture_graphs, eager_backend, sites_of
from torch import Tensor, nn

import metis_compile

X = torch.randn(2, 16, 64)
EVERYTHING = metis_compile.Policy.from_toml(
    "[recipe.r]\nweight = 'nvfp4'\nactivation = 'nvfp4'\ngradient = 'nvfp4'\n[[rule]]\nrecipe = 'r'\n"
)


def fprops(model: Any, *args: Any, policy: str = "nvfp4") -> list[Any]:
    return [s for s in sites_of(capture_graphs(model, *args, policy=policy)) if s.gemm == "fprop"]


def kinds(model: Any, *args: Any) -> dict[str, str | None]:
    return {s.module: s.kind for s in fprops(model, *args)}


class Pooling(nn.Module):
    """Learned queries that attend to all tokens, as in DETR and Perceiver."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(4, 64))
        self.k, self.v, self.out = (nn.Linear(64, 64) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        scores = self.queries @ self.k(x).mT / 8
        return self.out(F.dropout(scores.masked_fill(scores.isnan(), -1e9).softmax(-1), 0.1) @ self.v(x))


def test_attention_with_learned_queries_stays_high_with_all_that_backward_makes_of_it() -> None:
    captured = capture_graphs(Pooling(), X.clone().requires_grad_(), policy="nvfp4")
    attention = [s for s in sites_of(captured) if s.kind == "attention"]
    assert len(attention) == 2 + 4
    assert all(s.reason.startswith("high: base.toml rule 3 (has_weight=false); attention: ") for s in attention)
    reasons = {s.kind_reason for s in attention}
    assert reasons == {
        "its output goes into a softmax whose probabilities a product reads",
        "it reads the probabilities of a softmax",
    }
    others = [s for s in sites_of(captured) if s.kind is None]
    assert sorted({s.module for s in others}) == ["k", "out", "v"]
    assert all(s.reason is None and s.has_weight for s in others)


def test_learned_keys_and_values_are_attention_and_a_softmax_that_gates_is_not() -> None:
    class Memory(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.keys, self.values = nn.Parameter(torch.randn(64, 24)), nn.Parameter(torch.randn(24, 64))

        def forward(self, x: Tensor) -> Tensor:
            return torch.softmax(x @ self.keys, -1) @ self.values

    assert [s.kind for s in fprops(Memory(), X)] == ["attention", "attention"]

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights, self.up, self.down = (nn.Linear(64, 64) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.down(torch.softmax(self.weights(x), -1) * self.up(x))

    assert kinds(Gated(), X) == {"weights": None, "up": None, "down": None}


def test_a_functional_models_weights_are_weights() -> None:
    def model(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
        return torch.relu(x @ up) @ down

    up, down = torch.randn(64, 96, requires_grad=True), torch.randn(96, 64, requires_grad=True)
    captured = capture_graphs(model, X, up, down, policy="nvfp4")
    assert [(s.gemm, s.kind, s.reason) for s in sites_of(captured)] == [
        ("fprop", None, None),
        ("fprop", None, None),
        ("wgrad", None, None),
        ("dgrad", None, None),
        ("wgrad", None, None),
    ]


def test_functional_call() -> None:
    mlp = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64))
    values = {name: p.detach().clone().requires_grad_() for name, p in mlp.named_parameters()}
    found = fprops(lambda values, x: torch.func.functional_call(mlp, values, (x,)), values, X)
    assert [(s.module, s.reason) for s in found] == [("0", None), ("2", None)]


def test_a_functional_attention_is_attention() -> None:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.softmax(q @ k.mT, -1) @ v

    q, k, v = (torch.randn(16, 32, requires_grad=True) for _ in range(3))
    assert [s.kind for s in fprops(attend, q, k, v)] == ["attention", "attention"]


class Language(nn.Module):
    """Embeddings, a linear and an output layer of a name that says nothing; tied or not."""

    def __init__(self, tied: bool = False, cap: float | None = None, columns: int = 96) -> None:
        super().__init__()
        self.table, self.hidden = nn.Embedding(96, 64), nn.Linear(64, 64)
        self.words = nn.Linear(64, columns, bias=not tied)
        self.cap = cap
        if tied:
            self.words.weight = self.table.weight

    def forward(self, tokens: Tensor, labels: Tensor | None = None) -> Any:
        logits = self.words(self.hidden(self.table(tokens)))
        if self.cap is not None:
            logits = self.cap * torch.tanh(logits / self.cap)
        if labels is None:
            return logits
        return F.cross_entropy(logits.float().flatten(0, 1), labels.flatten())


TOKENS = torch.arange(32).view(2, 16)


@pytest.mark.parametrize(
    ("model", "args", "why"),
    [
        (Language(), (TOKENS,), "its output is the graph's, with a column for each of the 96 embeddings"),
        (Language(tied=True), (TOKENS,), "its weight is also an embedding's"),
        (Language(), (TOKENS, TOKENS), "its output goes into a loss"),
        (Language(cap=30.0, columns=10), (TOKENS, TOKENS % 10), "its output goes into a loss"),
    ],
    ids=["vocabulary", "tied", "loss", "softcap"],
)
def test_heads_are_found_by_what_they_are(model: nn.Module, args: tuple[Tensor, ...], why: str) -> None:
    found = {s.module: s for s in fprops(model, *args)}
    assert found["hidden"].kind is None
    assert (found["words"].kind, found["words"].kind_reason) == ("head", why)
    assert found["words"].reason == f"high: base.toml rule 2 (kind=head); head: {why}"


class FusedLoss(torch.autograd.Function):
    """A head and its cross entropy as libraries fuse them: gradients are computed in forward, and logits not kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        loss, dw, dx = x.new_zeros(()), torch.zeros_like(weight), []
        for rows, chosen in zip(x.chunk(2), labels.chunk(2), strict=True):
            logits = rows @ weight.mT
            probabilities = torch.exp(logits - logits.logsumexp(-1, keepdim=True))
            loss = loss - probabilities.gather(1, chosen[:, None]).log().sum() / len(x)
            d = (probabilities - F.one_hot(chosen, len(weight))) / len(x)
            dx.append(d @ weight)
            dw = torch.addmm(dw, d.mT, rows) if weight.requires_grad else dw
        ctx.save_for_backward(torch.cat(dx), dw)
        return loss

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        dx, dw = ctx.saved_tensors
        return gradient * dx, gradient * dw, None


class Fused(nn.Module):
    def __init__(self, frozen: bool = False) -> None:
        super().__init__()
        self.hidden, self.words = nn.Linear(64, 64), nn.Linear(64, 96, bias=False)
        self.words.weight.requires_grad_(not frozen)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return FusedLoss.apply(torch.relu(self.hidden(x)), self.words.weight, labels)  # type: ignore[no-any-return]


@pytest.mark.parametrize("frozen", [False, True])
def test_a_head_whose_loss_computes_its_gradients_in_forward(frozen: bool) -> None:
    x, labels = torch.randn(32, 64), torch.arange(32)
    found = sites_of(capture_graphs(Fused(frozen), x, labels, policy=EVERYTHING))
    of_head = [s for s in found if s.kind == "head"]
    roles = [(s.gemm, {o.role for o in s.operands}, s.has_weight, s.reason) for s in of_head]
    each = [("fprop", {"activation", "weight"}, True, None), ("dgrad", {"gradient", "weight"}, True, None)]
    each += [] if frozen else [("wgrad", {"gradient", "activation"}, True, None)]
    assert roles == each * 2
    assert {s.kind for s in found if s.module == "hidden"} == {None}
    best = sites_of(capture_graphs(Fused(frozen), x, labels, policy="best"))
    assert all(s.reason is not None for s in best if s.kind == "head")


def test_bases_of_such_gradients_are_kept_as_others_are() -> None:
    model, x, labels = Fused(), torch.randn(32, 64), torch.arange(32)
    text = "extends = 'metis'\n[[rule]]\nkind = 'head'\nrecipe = 'metis'\n"
    run = torch.compile(model, backend=eager_backend(metis_compile.Policy.from_toml(text)))
    kept = []
    for _ in range(2):
        run(x, labels).backward()
        kept.append(metis_compile.state_dict(model)["words.weight"]["gradient"].clone())
    for basis in kept:
        torch.testing.assert_close(basis @ basis.mT, torch.eye(len(basis)))  # and not as it was drawn
    assert not torch.equal(*kept)


def test_what_looks_like_gradients_and_is_read_by_forward_is_none() -> None:
    """A decoder that is the encoder transposed; and tokens summed up by what a linear makes of them."""
    encoder = nn.Linear(64, 96)
    assert {s.kind for s in fprops(lambda x: torch.relu(encoder(x)) @ encoder.weight, X)} == {None}

    def pooled(x: Tensor) -> Tensor:
        return torch.relu(encoder(x)).mT @ x

    assert [s.kind for s in fprops(pooled, X[0])] == [None, "attention"]


def test_an_output_that_is_no_vocabulary_is_no_head() -> None:
    assert kinds(Language(columns=48), TOKENS) == {"hidden": None, "words": None}


def test_a_functional_head_with_the_embeddings_weight_is_one() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.hidden = nn.Embedding(96, 64), nn.Linear(64, 64)

        def forward(self, tokens: Tensor) -> Tensor:
            return F.linear(self.hidden(self.table(tokens)), self.table.weight)

    assert kinds(Tied(), TOKENS) == {"hidden": None, "": "head"}


class Mixture(nn.Module):
    """A SwiGLU whose linears are called as some call them, and a router without a name."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(64, 96), nn.Linear(64, 96)
        self.down, self.choice = nn.Linear(96, 64), nn.Linear(64, 8)

    def forward(self, x: Tensor) -> Tensor:
        weights, _ = torch.sigmoid(self.choice(x)).topk(2)
        return weights.sum(-1, keepdim=True) * self.down(F.silu(self.gate(x)) * self.up(x))


def test_routers_choose_and_the_gate_of_a_swiglu_does_not() -> None:
    assert kinds(Mixture(), X) == {"gate": None, "up": None, "down": None, "choice": "router"}


def test_a_gate_whose_use_is_in_another_graph_is_a_router() -> None:
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Linear(64, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.gate(x)

    assert kinds(Gate(), X) == {"gate": "router"}


def test_factors_of_an_adapter() -> None:
    class Adapted(nn.Module):
        def __init__(self, rank: int) -> None:
            super().__init__()
            self.base, self.one, self.two = nn.Linear(64, 64), nn.Linear(64, rank), nn.Linear(rank, 64)

        def forward(self, x: Tensor) -> Tensor:
            return self.base(x) + 2 * self.two(self.one(F.dropout(x, 0.1)))

    assert kinds(Adapted(8), X) == {"base": None, "one": "adapter", "two": "adapter"}
    assert kinds(Adapted(32), X) == {"base": None, "one": None, "two": None}, "too wide for what it connects"


SMALL = {"vocab_size": 96, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LAYERS = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 64, "intermediate_size": 64}


def whisper() -> tuple[nn.Module, dict[str, Tensor], str]:
    config = transformers.WhisperConfig(
        **SMALL,
        d_model=64,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        num_mel_bins=8,
        max_source_positions=16,
        max_target_positions=16,
        decoder_start_token_id=1,
    )
    inputs = {"input_features": torch.randn(1, 8, 32), "decoder_input_ids": torch.ones(1, 4, dtype=torch.long)}
    return transformers.WhisperForConditionalGeneration(config), inputs, "proj_out"


def modernbert() -> tuple[nn.Module, dict[str, Tensor], str]:
    config = transformers.ModernBertConfig(
        **SMALL, **LAYERS, cls_token_id=1, sep_token_id=2, reference_compile=False, attn_implementation="sdpa"
    )
    return transformers.ModernBertForMaskedLM(config), {"input_ids": torch.ones(1, 8, dtype=torch.long)}, "decoder"


def clip() -> tuple[nn.Module, dict[str, Tensor], str]:
    text = {**SMALL, **LAYERS, "max_position_embeddings": 8}
    vision = {**LAYERS, "image_size": 16, "patch_size": 8}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=32)
    inputs = {"input_ids": torch.ones(1, 4, dtype=torch.long), "pixel_values": torch.randn(1, 3, 16, 16)}
    return transformers.CLIPModel(config), inputs, "visual_projection"


@pytest.mark.parametrize("make", [whisper, modernbert, clip])
def test_heads_of_transformers_under_any_prefix(make: Any) -> None:
    class Around(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, **inputs: Tensor) -> Any:
            return self.net(**inputs)

    model, inputs, head = make()
    explanation = metis_compile.explain(Around(model), **inputs, policy="nvfp4")
    assert "head" in str(explanation.site(f"net.{head}").reason)
    linears = [s for s in explanation.sites if s.gemm == "fprop" and s.weights and s.reason is None]
    assert len(linears) >= 4
