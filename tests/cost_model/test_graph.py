"""Kernels of small graphs: what is one, what it reads and writes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from metis_compile.conditioning import residual
from metis_compile.cost_model.graph import MARK, kernels_of
from metis_compile.ops.held_amax import HELD_AMAX
from metis_compile.ops.quantization import QUANTIZE
from metis_compile.ops.residual import RESIDUAL


def kernels(function: Callable[..., Any], *inputs: Tensor) -> list[tuple[str, int, int]]:
    """(name, FLOPs, bytes) of each."""
    graph = make_fx(function, tracing_mode="fake")(*inputs).graph
    return [(p.kernel.name, int(p.kernel.flops), int(p.kernel.nbytes)) for p in kernels_of(graph, {})]


A, B = torch.ones(8, 16), torch.ones(16, 4)


def test_a_product() -> None:
    assert kernels(torch.mm, A, B) == [("mm", 2 * 8 * 16 * 4, 4 * (8 * 16 + 16 * 4 + 8 * 4))]


def test_elementwise_operators_are_part_of_what_reads_them() -> None:
    found = kernels(lambda a: (a.exp() + 1).tanh() * 2, A)
    assert found == [("mul", 0, 2 * 4 * 8 * 16)], "one kernel, which reads once and writes once"


def test_what_a_product_reads_is_in_memory() -> None:
    found = kernels(lambda a, b: torch.mm(a.exp(), b), A, B)
    assert [name for name, _, _ in found] == ["exp", "mm"]
    assert found[0][2] == 2 * 4 * 8 * 16


def test_a_view_is_no_kernel_and_shows_what_is_read() -> None:
    assert [name for name, _, _ in kernels(lambda a, b: torch.mm(a.t().t(), b), A, B)] == ["mm"]
    (only,) = kernels(lambda a: a[:2].exp(), A)
    assert only[2] == 2 * 4 * 2 * 16, "of a slice no more than the slice"
    (only,) = kernels(lambda a: a[:1].expand(8, 16).exp(), A)
    assert only[2] == 4 * (16 + 8 * 16), "of what is expanded no more than there is"


def test_a_sum_is_fused_with_what_it_sums() -> None:
    found = kernels(lambda a: (a * a).sum(1), A)
    assert found == [("sum", 0, 4 * (8 * 16 + 8))]


def test_what_a_sum_and_something_else_read_is_in_memory() -> None:
    found = kernels(lambda a: ((a * a).sum(1, keepdim=True), (a * a).exp()), A)
    assert [name for name, _, _ in found] == ["sum", "exp"], "two tensors of the same values are two"

    def shared(a: Tensor) -> tuple[Tensor, Tensor]:
        square = a * a
        return square.sum(1, keepdim=True), square.exp()

    assert [name for name, _, _ in kernels(shared, A)] == ["mul", "sum", "exp"]


def test_an_amax_that_is_held_takes_no_pass() -> None:
    def held(x: Tensor, kept: Tensor) -> Any:
        amax, moved = HELD_AMAX(x, kept, 50)
        return [*QUANTIZE(x, "nvfp4 1x16 nearest", 1, amax=amax), moved]

    own = kernels(lambda x: QUANTIZE(x, "nvfp4 1x16 nearest", 1), A)
    assert [name for name, _, _ in own] == ["tensor scale", "quantize"]
    assert kernels(held, A, torch.zeros(2)) == own[1:]


def test_a_lookup_reads_what_it_gives() -> None:
    table, places = torch.ones(1000, 16), torch.zeros(8, dtype=torch.int64)
    (only,) = kernels(lambda t, p: torch.ops.aten.embedding.default(t, p), table, places)
    assert only[2] == 3 * 4 * 8 * 16, "of the table what is looked up, and of the places no more than that"


def test_grouped_products_and_attention_are_counted() -> None:
    q = torch.ones(1, 2, 8, 4)
    (only,) = kernels(lambda x: torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default(x, x, x)[0], q)
    assert only[1] == 2 * (2 * 2 * 8 * 8 * 4)


MEAN, LEFT, RIGHT = torch.ones(1, 16), torch.ones(8, 3), torch.ones(3, 16)


def test_a_residual_is_its_product_or_part_of_what_reads_it() -> None:
    assert kernels(lambda a, m: RESIDUAL(a, m).exp(), A, MEAN) == [("exp", 0, 4 * (2 * 8 * 16 + 16))]
    thin = kernels(lambda a, u, s: RESIDUAL(a, None, u, s).exp(), A, LEFT, RIGHT)
    assert thin[0] == ("residual", 2 * 8 * 3 * 16, 4 * (2 * 8 * 16 + 8 * 3 + 3 * 16))


@pytest.mark.parametrize("given", [(MEAN,), (None, LEFT, RIGHT), (MEAN, LEFT, RIGHT)], ids=["mean", "factors", "both"])
def test_a_residual_costs_what_it_does_written_out(given: tuple[Tensor | None, ...]) -> None:
    tensors = [tensor.bfloat16() for tensor in given if tensor is not None]  # as factors are stored

    def cost(function: Callable[..., Any]) -> list[Any]:
        def run(x: Tensor, y: Tensor, *tensors: Tensor) -> Tensor:
            taken = iter([tensor.float() for tensor in tensors])
            return torch.mm(function(x, *(None if t is None else next(taken) for t in given)), y)

        graph = make_fx(run, tracing_mode="fake")(A, B, *tensors).graph
        *made, product, _ = (node for node in graph.nodes if node.op != "placeholder")
        for node in made:
            node.meta[MARK] = 0
        found = [placed.kernel for placed in kernels_of(graph, {product.name: 0})]
        return [(k.kind, k.unit, k.cpu_unit, k.flops, k.nbytes, k.is_part, k.own) for k in found]

    assert cost(RESIDUAL) == cost(residual)
