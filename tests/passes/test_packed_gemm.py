"""Products that read codes: which of them do, what they take into their sum, and that results stay the same."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from graphs import capture_graphs, count
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from metis_compile import Policy
from metis_compile.compat import inductor_config
from metis_compile.kernels.gemm.op import GEMM
from metis_compile.ops.quantization import DEQUANTIZE, QUANTIZE
from metis_compile.passes.graph.builder import GraphBuilder
from metis_compile.passes.graph.products import PRODUCTS
from metis_compile.passes.lowering.packed_gemm import pack_products

aten = torch.ops.aten
SPEC = "nvfp4 1x16 nearest"
SPECTRAL = '{ kind = "spectral", rank = 3, refresh = 1 }'


def policy(weight: str = "", activation: str = "", gradient: str = "") -> Policy:
    """NVFP4, every operand to nearest, with what is added to each operand's treatment."""
    added = {"weight": weight, "activation": activation, "gradient": gradient}
    lines = [f'{role} = {{ format = "nvfp4"{", " if text else ""}{text} }}' for role, text in added.items()]
    return Policy.from_toml("\n".join(["[recipe.r]", *lines, "[[rule]]", "has_weight = true", 'recipe = "r"']))


def multiplied(gm: fx.GraphModule, cpu_backend: str = "triton") -> tuple[fx.GraphModule, list[fx.Node]]:
    """A copy in which products read codes, and these products."""
    copied = fx.GraphModule(gm, copy.deepcopy(gm.graph))
    with inductor_config.patch(cpu_backend=cpu_backend):
        made = pack_products(GraphBuilder(copied.graph))
    copied.graph.eliminate_dead_code()
    copied.graph.lint()
    copied.recompile()
    return copied, made


def products(gm: fx.GraphModule) -> int:
    return sum(count(gm, target) for target in PRODUCTS)


def assert_same_results(actual: fx.GraphModule, wanted: fx.GraphModule) -> None:
    """Of random inputs, and the same random numbers inside."""
    generator = torch.Generator().manual_seed(5)
    inputs = [n.meta["val"] for n in wanted.graph.find_nodes(op="placeholder")]
    values = [torch.randn(v.shape, generator=generator).to(v.dtype) for v in inputs]
    results = []
    for gm in (actual, wanted):
        torch.manual_seed(0)
        results.append([t for t in torch.utils._pytree.tree_leaves(gm(*values)) if t is not None])
    for a, b in zip(*results, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        last_bit = 2.0**-8 if a.dtype == torch.bfloat16 else 1e-5  # of sums in another order
        torch.testing.assert_close(a, b, rtol=last_bit, atol=last_bit * float(b.abs().max()))


def joint(model: nn.Module, x: Tensor, chosen: Policy | str) -> fx.GraphModule:
    graph = capture_graphs(model, x.requires_grad_(), policy=chosen).graphs[0].joint_after
    assert graph is not None
    return graph


@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(19, 36), (3, 7, 36), (1, 19, 36)], ids=str)
def test_all_three_products_of_a_linear(shape: tuple[int, ...], dtype: torch.dtype, bias: bool) -> None:
    model = nn.Linear(36, 21, bias=bias).to(dtype)
    before = joint(model, torch.randn(shape, dtype=dtype), policy())
    after, made = multiplied(before)
    assert len(made) == count(after, GEMM) == 3
    assert products(after) == count(after, DEQUANTIZE) == 0
    assert not any(node.args[-1] for node in made)
    assert_same_results(after, before)


@pytest.mark.parametrize(
    "chosen",
    ["fp8", policy('block = "16x16"'), policy(*['hadamard = "fixed"'] * 3)],
    ids=["fp8", "square blocks", "hadamard"],
)
def test_other_treatments(chosen: Policy | str) -> None:
    before = joint(nn.Linear(36, 21), torch.randn(19, 36), chosen)
    after, made = multiplied(before)
    assert len(made) == 3
    assert count(after, DEQUANTIZE) == 0
    assert_same_results(after, before)


def test_a_weight_s_square_blocks_are_read_across() -> None:
    _, made = multiplied(joint(nn.Linear(36, 21, bias=False), torch.randn(19, 36), policy('block = "16x16"')))
    axes = [(node.args[2], node.args[4], node.args[7], node.args[9]) for node in made]
    assert (1, 1, 1, 0) in axes, "dgrad reads the codes of fprop, packed along the axis that it does not contract"


TAILS = {  # pairs of factors that join fprop, dgrad and wgrad; then what is still decoded
    "mean": (policy(activation='split = "mean"'), (0, 0, 1), 0),
    "means": (policy(activation='split = "mean"', gradient='split = "mean"'), (0, 0, 2), 1),
    "spectral": (policy(activation=f"split = {SPECTRAL}"), (1, 0, 1), 0),
    "spectral twice": (policy(activation=f"split = {SPECTRAL}", gradient=f"split = {SPECTRAL}"), (1, 1, 2), 1),
    "mean and spectral": (policy(f"split = {SPECTRAL}", 'split = "mean"'), (1, 1, 1), 0),
}


@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("name", TAILS)
def test_thin_products_join_the_sum(name: str, bias: bool) -> None:
    chosen, joined, decoded = TAILS[name]
    before = joint(nn.Linear(36, 21, bias=bias), torch.randn(40, 36), chosen)
    after, made = multiplied(before)
    pairs = {tuple(node.meta["val"].shape): len(node.args[-1]) // 2 for node in made}  # type: ignore[arg-type]
    assert pairs == dict(zip(((40, 21), (40, 36), (21, 36)), joined, strict=True))
    assert count(after, DEQUANTIZE) == decoded, "what a split gradient's factors multiply: the saved activation"
    assert_same_results(after, before)


def test_one_decoded_operand_is_not_enough() -> None:
    high = Policy.from_toml(
        """
        [recipe.r]
        weight = "high"
        activation = { format = "nvfp4" }
        gradient = "high"
        [[rule]]
        recipe = "r"
        """
    )
    before = joint(nn.Linear(36, 21), torch.randn(19, 36), high)
    after, made = multiplied(before)
    assert made == []
    assert count(after, DEQUANTIZE) == count(before, DEQUANTIZE) > 0


def test_only_where_inductor_makes_triton_kernels() -> None:
    _, made = multiplied(joint(nn.Linear(36, 21), torch.randn(19, 36), policy()), cpu_backend="cpp")
    assert made == []


# Graphs written by hand


def decoded(x: Tensor, axis: int) -> Tensor:
    result: Tensor = DEQUANTIZE(QUANTIZE(x, SPEC, axis), SPEC, axis, x.shape[axis])
    return result


def traced(function: Callable[..., Tensor], *inputs: Tensor) -> fx.GraphModule:
    return make_fx(function, tracing_mode="fake")(*inputs)


X, W = torch.randn(19, 36), torch.randn(21, 36)
FIRES: dict[str, tuple[Callable[..., Tensor], list[Tensor]]] = {
    "mm": (lambda x, w: aten.mm(decoded(x, 1), decoded(w, 1).t()), [X, W]),
    "addmm": (lambda b, x, w: aten.addmm(b, decoded(x, 1), decoded(w, 1).t()), [torch.randn(21), X, W]),
    "bmm": (lambda x, w: aten.bmm(decoded(x, 2), decoded(w, 2).mT), [X.expand(3, 19, 36), W.expand(3, 21, 36)]),
    "baddbmm": (
        lambda b, x, w: aten.baddbmm(b, decoded(x, 2), decoded(w, 2).mT),
        [torch.randn(3, 19, 21), torch.randn(3, 19, 36), torch.randn(3, 21, 36)],
    ),
    "added to itself": (lambda x, w: (y := aten.mm(decoded(x, 1), decoded(w, 1).t())) + y, [X, W]),
    "decoded elsewhere too": (
        lambda x, w: (aten.mm(xq := decoded(x, 1), decoded(w, 1).t()), xq.sum()),  # type: ignore[dict-item]
        [X, W],
    ),
}
LEFT: dict[str, tuple[Callable[..., Tensor], list[Tensor]]] = {
    "alpha": (lambda b, x, w: aten.addmm(b, decoded(x, 1), decoded(w, 1).t(), alpha=2), [torch.randn(21), X, W]),
    "addbmm": (
        lambda b, x, w: aten.addbmm(b, decoded(x, 2), decoded(w, 2).mT),
        [torch.randn(19, 21), torch.randn(3, 19, 36), torch.randn(3, 21, 36)],
    ),
    "broadcast": (
        lambda x, w: aten.bmm(decoded(x, 2), decoded(w, 1).t().expand(3, 36, 21)),
        [torch.randn(3, 19, 36), W],
    ),
    "a dimension in front": (lambda x, w: aten.bmm(decoded(x, 1)[None], decoded(w, 1).t()[None]), [X, W]),
    "computed from": (lambda x, w: aten.mm(decoded(x, 1) * 2, decoded(w, 1).t()), [X, W]),
    "rearranged": (lambda x, w: aten.mm(decoded(x, 1).view(38, 18), decoded(w, 1).view(42, 18).t()), [X, W]),
    "blocked the other way": (lambda x, w: aten.mm(decoded(x, 0), decoded(w, 1).t()), [X, W]),
}


@pytest.mark.parametrize("name", FIRES)
def test_fires(name: str) -> None:
    function, inputs = FIRES[name]
    before = traced(function, *inputs)
    after, made = multiplied(before)
    assert len(made) == 1
    assert products(after) == 0
    assert count(after, DEQUANTIZE) == (name == "decoded elsewhere too")
    assert_same_results(after, before)


@pytest.mark.parametrize("name", LEFT)
def test_leaves_alone(name: str) -> None:
    function, inputs = LEFT[name]
    after, made = multiplied(traced(function, *inputs))
    assert made == []
    assert products(after) == 1
    assert count(after, DEQUANTIZE) == 2


def with_tail(rank: int, **meta: Any) -> fx.GraphModule:
    gm = traced(
        lambda x, w, u, s: aten.mm(decoded(x, 1), decoded(w, 1).t()) + aten.mm(u, s),
        X, W, torch.randn(19, rank), torch.randn(rank, 21),
    )  # fmt: skip
    gm.graph.find_nodes(op="call_function", target=aten.mm.default)[1].meta.update(meta)
    return gm


@pytest.mark.parametrize(
    ("rank", "meta", "joins"), [(256, {"metis_tail": True}, True), (257, {"metis_tail": True}, False), (3, {}, False)]
)
def test_only_thin_products_of_splits_join(rank: int, meta: dict[str, bool], joins: bool) -> None:
    before = with_tail(rank, **meta)
    after, (made,) = multiplied(before)
    assert len(made.args[-1]) == 2 * joins  # type: ignore[arg-type]
    assert count(after, aten.mm.default) == (not joins)
    assert_same_results(after, before)
