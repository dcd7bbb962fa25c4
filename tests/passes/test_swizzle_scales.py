"""Which quantizations write their scales swizzled: those that block-scaled products alone read; and values stay."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from graphs import capture_graphs
from same_bytes import assert_same
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from metis_compile import CapturedGraph, Policy
from metis_compile.compat import inductor_config
from metis_compile.ops.quantization import DEQUANTIZE, QUANTIZE
from metis_compile.passes.joint.swizzle_scales import swizzle_in

aten = torch.ops.aten
SPEC = "nvfp4 1x16 nearest"


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Makes the passes see a GPU of a compute capability, and Inductor make Triton kernels."""

    def pretended(capability: int) -> None:
        monkeypatch.setattr("metis_compile.passes.joint.swizzle_scales.capability_of", lambda device: capability)

    with inductor_config.patch(cpu_backend="triton"):
        yield pretended


def policy(weight: str = "", activation: str = "", gradient: str = "") -> Policy:
    """NVFP4, every operand to nearest, with what is added to each operand's treatment, or another treatment."""
    added = {"weight": weight, "activation": activation, "gradient": gradient}
    lines = []
    for role, text in added.items():
        treatment = text if "format" in text else f'format = "nvfp4"{", " if text else ""}{text}'
        lines.append(f'{role} = "high"' if text == "high" else f"{role} = {{ {treatment} }}")
    return Policy.from_toml("\n".join(["[recipe.r]", *lines, "[[rule]]", "has_weight = true", 'recipe = "r"']))


def captured(chosen: Policy | str, model: nn.Module | None = None, x: Tensor | None = None) -> CapturedGraph:
    torch.manual_seed(0)
    model = nn.Linear(36, 21) if model is None else model
    x = torch.randn(40, 36) if x is None else x
    return capture_graphs(model, x.requires_grad_(), policy=chosen).graphs[0]


def swizzled_in(gm: fx.GraphModule | None) -> set[str]:
    """Roles and axes of the quantizations whose scales are swizzled, such as "activation 1"."""
    assert gm is not None
    nodes = gm.graph.find_nodes(op="call_function", target=QUANTIZE)
    return {f"{role_of(n)} {n.args[2]}" for n in nodes if n.kwargs.get("swizzled")}


def role_of(node: fx.Node) -> str:
    return next(role for role in ("activation", "weight", "gradient") if role in node.name)


ALL = {f"{role} {axis}" for role in ("activation", "weight", "gradient") for axis in (0, 1)}
SPECTRAL = 'split = { kind = "spectral", rank = 3, refresh = 1 }'
CASES: dict[str, tuple[Policy | str, set[str]]] = {
    "nvfp4": (policy(), ALL),
    "mxfp4": ("mxfp4", ALL),
    "mxfp8": ("mxfp8", ALL),
    "fp8": ("fp8", set()),
    "drawn": (policy(gradient='rounding = "stochastic"'), ALL),
    "mean": (policy(activation='split = "mean"'), ALL),
    "spectral": (policy(activation=SPECTRAL), ALL),
    # a split gradient's factors multiply the saved activation, decoded
    "spectral twice": (policy(activation=SPECTRAL, gradient=SPECTRAL), ALL - {"activation 0"}),
    # dgrad reads a weight's codes across, by another template; fprop does not
    "square weight": (policy(weight='block = "16x16"'), {"activation 0", "activation 1", "gradient 0"}),
    "gradient high": (policy(gradient="high"), {"activation 1", "weight 1"}),
    "weight high": (policy(weight="high"), {"activation 0", "gradient 0"}),
    "scales of two kinds": (policy(gradient='format = "mxfp8"'), {"activation 1", "weight 1"}),
}


@pytest.mark.parametrize("name", CASES)
def test_which_are_swizzled(pretend: Any, name: str) -> None:
    chosen, expected = CASES[name]
    pretend(100)
    assert swizzled_in(captured(chosen).joint_after) == expected


@pytest.mark.parametrize("capability", [0, 80, 90, 110, 120])
def test_on_other_gpus_none_is(pretend: Any, capability: int) -> None:
    pretend(capability)
    assert swizzled_in(captured(policy()).joint_after) == set()


def test_nowhere_else_none_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metis_compile.passes.joint.swizzle_scales.capability_of", lambda device: 100)
    assert swizzled_in(captured(policy()).joint_after) == set()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("shape", [(40, 36), (3, 7, 36)], ids=str)
def test_results_are_the_same_bits(pretend: Any, name: str, shape: tuple[int, ...]) -> None:
    chosen, _ = CASES[name]
    results = []
    for capability in (90, 100):
        pretend(capability)
        graph = captured(chosen, x=torch.randn(shape)).joint_after
        assert graph is not None
        generator = torch.Generator().manual_seed(5)
        inputs = [n.meta["val"] for n in graph.graph.find_nodes(op="placeholder")]
        torch.manual_seed(0)
        results.append(graph(*(torch.randn(v.shape, generator=generator).to(v.dtype) for v in inputs)))
    for a, b in zip(*results, strict=True):
        assert a is b is None or torch.equal(a, b)


def test_saved_scales_are_counted_as_they_are_stored(pretend: Any) -> None:
    """4.5 bits an element but for what fills up tiles of 128 by 4, and the scale of the tensor."""
    saved = []
    for capability in (90, 100):
        for features, tokens in ((128, 64), (36, 40)):
            pretend(capability)
            graph = captured(policy(), nn.Linear(features, 16, bias=False), torch.randn(tokens, features))
            (scales,) = (t for t in graph.saved if t.dtype == torch.float8_e4m3fn)
            saved.append((scales.shape, graph.saved_bytes))
    assert saved == [
        ((4, 128), 128 * 64 // 2 + 4 * 128 + 4),
        ((3, 36), 36 * 20 + 3 * 36 + 4),
        ((1, 1, 32, 4, 4), 128 * 64 // 2 + 4 * 128 + 4),
        ((1, 1, 32, 4, 4), 36 * 20 + 512 + 4),
    ]


# Graphs written by hand


def decoded(x: Tensor, axis: int) -> Tensor:
    result: Tensor = DEQUANTIZE(QUANTIZE(x, SPEC, axis), SPEC, axis, x.shape[axis])
    return result


X, W = torch.randn(19, 36), torch.randn(21, 36)
BATCHES = torch.randn(3, 19, 36), torch.randn(3, 21, 36)
HAND: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...], int]] = {  # and how many are swizzled
    "mm": (lambda x, w: aten.mm(decoded(x, 1), decoded(w, 1).t()), (X, W), 2),
    "bmm": (lambda x, w: aten.bmm(decoded(x, 2), decoded(w, 2).mT), BATCHES, 2),
    "transposed": (lambda x, w: aten.mm(decoded(x, 0), decoded(w, 0).t()), (X.T.contiguous().T, W), 0),
    "float64": (lambda x, w: aten.mm(decoded(x.float(), 1), decoded(w.float(), 1).t()), (X.double(), W), 2),
    "read twice": (lambda x, w: aten.mm(xq := decoded(x, 1), decoded(w, 1).t()) + aten.mm(xq, xq.t()).sum(), (X, W), 2),
    "decoded elsewhere": (lambda x, w: (aten.mm(xq := decoded(x, 1), decoded(w, 1).t()), xq.sum()), (X, W), 1),
    "given back": (lambda x, w: (aten.mm(xq := decoded(x, 1), decoded(w, 1).t()), xq), (X, W), 1),
    "given back transposed": (lambda x, w: (aten.mm(decoded(x, 1), wq := decoded(w, 1).t()), wq), (X, W), 1),
    "scales given back": (
        lambda x, w: (
            aten.mm(DEQUANTIZE(parts := QUANTIZE(x, SPEC, 1), SPEC, 1, 36), decoded(w, 1).t()),
            parts[1],
        ),
        (X, W),
        1,
    ),
    "added to its own product": (
        lambda x, w: aten.addmm(xq := decoded(x, 1), xq, decoded(w, 1).t()),
        (X[:, :19], W[:19, :19]),
        1,
    ),
    "one operand": (lambda x, w: aten.mm(decoded(x, 1), w.t()), (X, W), 0),
    "nothing reads it": (lambda x, w: QUANTIZE(x, SPEC, 1)[0], (X, W), 0),
}


@pytest.mark.parametrize("name", HAND)
def test_graphs_by_hand(pretend: Any, name: str) -> None:
    function, inputs, count = HAND[name]
    gm = make_fx(function, tracing_mode="fake")(*inputs)
    expected = gm(*inputs)
    pretend(100)
    made = swizzle_in(gm.graph)
    assert len(made) == count
    gm.graph.lint()
    gm.recompile()
    for node in made:
        (scales,) = (user for user in node.users if user.args[1] == 1)
        assert scales.meta["val"].dim() == node.meta["val"][0].dim() + 3
    for a, b in zip(*map(torch.utils._pytree.tree_leaves, (gm(*inputs), expected)), strict=True):
        assert_same(a, b, name)
