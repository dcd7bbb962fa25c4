"""Every function that is a matrix product, with every argument that it has, under every split.

Without quantization the rewritten graph gives what the graph before gave: a tail that is dropped, or not scaled as
the product is, shows as an error of the order of the product itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from by_hand import SAME_DRAWS, assert_same, relative_error
from graphs import capture_graphs, count, eager_backend, sites_of
from torch import Tensor, nn
from treatments import QUANTIZERS, ROLES, SPLITS, policy
from without_quantization import ROUNDING, without_quantization
from written_out import values_for

import metis_compile
from metis_compile import Policy
from metis_compile.ops.quantization import QUANTIZE

M, N, K = 20, 24, 33  # no multiple of 16 is contracted over
Shapes = tuple[tuple[int, ...], ...]  # of the input, and of parameters


def addmm(**scales: float) -> Callable[..., Tensor]:
    return lambda x, added, w: torch.addmm(added, x, w, **scales)


MATRICES: dict[str, tuple[Callable[..., Tensor], Shapes]] = {
    "linear with bias": (F.linear, ((2, M, K), (N, K), (N,))),
    "mm": (torch.mm, ((M, K), (K, N))),
    "a weight on the left": (lambda x, w: torch.mm(w, x), ((K, M), (N, K))),
    "addmm of a row": (addmm(alpha=-2.0), ((M, K), (N,), (K, N))),
    "addmm of one row": (addmm(alpha=2, beta=3), ((M, K), (1, N), (K, N))),
    "addmm of a column": (addmm(alpha=0.5, beta=-1), ((M, K), (M, 1), (K, N))),
    "addmm of a number": (addmm(alpha=-1), ((M, K), (), (K, N))),
    "addmm of a matrix": (addmm(alpha=3, beta=0.25), ((M, K), (M, N), (K, N))),
    "addmm, beta alone": (addmm(beta=2), ((M, K), (N,), (K, N))),
    "addmm, beta zero": (addmm(alpha=2, beta=0), ((M, K), (N,), (K, N))),
    "addmm, alpha zero": (addmm(alpha=0, beta=2), ((M, K), (N,), (K, N))),
    "addmm in place": (lambda x, c, w: (c * 1).addmm_(x, w, alpha=2, beta=3), ((M, K), (M, N), (K, N))),
    "bmm of one": (torch.bmm, ((1, M, K), (1, K, N))),
    "bmm of one, expanded": (lambda x, w: torch.bmm(x, w.expand(1, K, N)), ((1, M, K), (K, N))),
    "bmm of one, of transposes": (lambda x, w: torch.bmm(x.mT, w.mT), ((1, K, M), (1, N, K))),
    "baddbmm of one": (lambda x, c, w: torch.baddbmm(c, x, w, alpha=-2, beta=3), ((1, M, K), (1, M, N), (1, K, N))),
    "baddbmm of one, of a row": (lambda x, c, w: torch.baddbmm(c, x, w, alpha=2), ((1, M, K), (N,), (1, K, N))),
    "einsum": (lambda x, w: torch.einsum("bsh,hnd->bsnd", x, w), ((2, M, K), (K, 4, 6))),
    "einsum, heads contracted": (lambda x, w: torch.einsum("bsnd,hnd->bsh", x, w), ((2, M, 3, 11), (N, 3, 11))),
    "einsum, weight first": (lambda x, w: torch.einsum("fh,bsh->bfs", w, x), ((2, M, K), (N, K))),
    "tensordot": (lambda x, w: torch.tensordot(x, w, 2), ((M, 3, 11), (3, 11, N))),
    "inner": (torch.inner, ((2, M, K), (N, K))),
    "multi_dot": (lambda x, a, b: torch.linalg.multi_dot([x, a, b]), ((M, K), (K, 40), (40, N))),
    "a vector and a matrix": (torch.matmul, ((K,), (K, N))),
}
# of one row or column, which is a matrix both ways round
THIN: dict[str, tuple[Callable[..., Tensor], Shapes]] = {
    "einsum of one row": (lambda x, w: torch.einsum("mk,kn->nm", x, w), ((1, K), (K, N))),
    "einsum of one column": (lambda x, w: torch.einsum("km,kn->mn", x, w), ((K, 1), (K, N))),
    "bmm of one row": (lambda x, w: torch.bmm(x.mT, w), ((1, K, 1), (1, K, N))),
    "bmm of every other column": (lambda x, w: torch.bmm(x[:, ::2].mT, w), ((1, 2 * K, 1), (1, K, N))),
}
# batches of matrices, of which no split is, and what Inductor writes out before there is a product
OTHERS: dict[str, tuple[Callable[..., Tensor], Shapes]] = {
    "bmm": (torch.bmm, ((3, M, K), (3, K, N))),
    "baddbmm": (lambda x, c, w: torch.baddbmm(c, x, w, alpha=-2, beta=3), ((3, M, K), (M, 1), (3, K, N))),
    "addbmm": (lambda x, c, w: torch.addbmm(c, x, w, alpha=-2, beta=3), ((3, M, K), (N,), (3, K, N))),
    "addbmm, beta zero": (lambda x, c, w: torch.addbmm(c, x, w, beta=0), ((3, M, K), (M, N), (3, K, N))),
    "mv": (torch.mv, ((M, K), (K,))),
    "addmv": (lambda x, c, v: torch.addmv(c, x, v, alpha=-2, beta=3), ((M, K), (M,), (K,))),
    "addr": (lambda x, c, v: torch.addr(c, x, v, alpha=-2, beta=3), ((M,), (M, N), (N,))),
    "dot": (torch.dot, ((K,), (K,))),
    "outer": (torch.outer, ((M,), (N,))),
}
# the least that shows a tail which is dropped or mis-scaled
SCALED = ("addmm of one row", "addmm, beta zero", "baddbmm of one", "einsum")
LOWERED = ("addmm of a row", "addmm of one row", "addmm of a matrix", "addmm, beta zero", "baddbmm of one", "einsum")
MORE_SPLITS = {
    "made anew and kept": '[{ kind = "spectral", rank = 2, refresh = 1 }, { kind = "spectral", rank = 2 }]',
    "user's own and kept": '[{ kind = "own_conditioning:LargestColumns", count = 2 }, { kind = "spectral", rank = 2 }]',
}


class Products(nn.Module):
    """Calls each function with an input of its own and parameters of its own."""

    def __init__(self, calls: dict[str, tuple[Callable[..., Tensor], Shapes]], dtype: torch.dtype) -> None:
        super().__init__()
        self.functions = [function for function, _ in calls.values()]
        self.weights = nn.ParameterList(
            nn.ParameterList(torch.randn(shape, dtype=dtype) for shape in shapes) for _, (_, *shapes) in calls.values()
        )

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        every = zip(self.functions, inputs, self.weights, strict=True)
        return [function(x, *weights) for function, x, weights in every]


def inputs_of(calls: dict[str, tuple[Callable[..., Tensor], Shapes]], dtype: torch.dtype) -> list[Tensor]:
    return [torch.randn(shapes[0], dtype=dtype).requires_grad_() for _, shapes in calls.values()]


def check(chosen: Policy, calls: dict[str, Any], dtype: torch.dtype = torch.float32) -> list[Any]:
    """All outputs and gradients: without quantization as before, with it near. Returns the products."""
    captured = capture_graphs(Products(calls, dtype), *inputs_of(calls, dtype), policy=chosen)
    before, after = captured.graphs[0].joint_before, captured.graphs[0].joint_after
    assert before is not None
    assert after is not None
    values = values_for(before).values()
    expected = before(*(v.clone() for v in values))
    near = after(*(v.clone() for v in values))
    exact = without_quantization(after)(*(v.clone() for v in values))
    for number, (wanted, found, close) in enumerate(zip(expected, exact, near, strict=True)):
        if wanted is not None:
            limit = ROUNDING if dtype == torch.float32 else 2e-2
            assert found.dtype == wanted.dtype
            assert found.shape == wanted.shape
            assert relative_error(found, wanted) < limit, (number, tuple(wanted.shape))
            assert relative_error(close, wanted) < 0.5, (number, tuple(wanted.shape))
    return sites_of(captured)


def of_all(split: str | None, quantizer: str = "nvfp4") -> Policy:
    if split in MORE_SPLITS:
        text = "\n".join(f"{role} = {{ {QUANTIZERS[quantizer]}, split = {MORE_SPLITS[split]} }}" for role in ROLES)
        return Policy.from_toml(f'[recipe.r]\n{text}\n[[rule]]\nrecipe = "r"')
    return policy(*[(quantizer, split)] * 3)


@pytest.mark.parametrize("split", ["mean, high", "spectral, kept"])
def test_products_of_matrices(split: str) -> None:
    sites = check(of_all(split), MATRICES)
    assert len(sites) >= 3 * len(MATRICES)
    assert {site.reason for site in sites} == {None}


@pytest.mark.parametrize("split", ["mean, high", "spectral, kept", None])
def test_products_of_one_row_or_column(split: str | None) -> None:
    """Of its three products Inductor writes the one over a single row as an elementwise product."""
    sites = check(of_all(split), THIN)
    assert len(sites) >= 2 * len(THIN)
    assert {site.reason for site in sites} == {None}


@pytest.mark.parametrize("split", [*SPLITS, *MORE_SPLITS])
def test_scaled_products_under_every_split(split: str) -> None:
    assert {site.reason for site in check(of_all(split), {name: MATRICES[name] for name in SCALED})} == {None}


@pytest.mark.parametrize("split", [None, "mean, high", "compensated"])
def test_products_of_matrices_under_a_hadamard_transform(split: str | None) -> None:
    calls = {name: MATRICES[name] for name in (*SCALED, "bmm of one, expanded")}
    assert {site.reason for site in check(of_all(split, "turned"), calls)} == {None}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("split", ["mean, high", "chain, residual", None])
def test_products_of_half_precision(split: str | None, dtype: torch.dtype) -> None:
    assert {site.reason for site in check(of_all(split), {name: MATRICES[name] for name in LOWERED}, dtype)} == {None}


@pytest.mark.parametrize("split", ["chain", None])
def test_batches_and_vectors(split: str | None) -> None:
    reasons = {site.reason for site in check(of_all(split), OTHERS)}
    batch = "a split is of matrices, and this product has a batch of 3"
    assert reasons == ({None, batch} if split else {None})


@pytest.mark.parametrize("split", ["mean, high", None])
def test_what_is_added_is_not_looked_at_where_beta_is_zero(split: str | None) -> None:
    model = Products({"": MATRICES["addmm, beta zero"]}, torch.float32)
    nn.init.constant_(model.weights[0][0], float("nan"))
    x = torch.randn(M, K)
    torch.compiler.reset()
    (found,), (expected,) = torch.compile(model, backend=eager_backend(of_all(split)))(x), model(x)
    assert relative_error(found, expected) < 0.5


def test_inductor_gives_the_same() -> None:
    """The C++ kernels add tails, scales and what is added in calls of their own."""
    calls = {name: MATRICES[name] for name in LOWERED} | {"addbmm": OTHERS["addbmm"]}
    model, inputs, chosen = Products(calls, torch.float32), inputs_of(calls, torch.float32), of_all("chain")
    leaves = [*inputs, *model.parameters()]
    found = []
    for backend, options in (("metis", {"policy": chosen, "fallback_random": True}), (None, None)):
        torch.compiler.reset()
        backend = backend or eager_backend(chosen, fallback_random=True)
        torch.manual_seed(7)
        outputs = torch.compile(model, backend=backend, options=options)(*inputs)
        gradients = torch.autograd.grad(sum(y.square().sum() for y in outputs), leaves)
        found.append(dict(enumerate([*(y.detach() for y in outputs), *gradients])))
    assert_same(found[0], found[1], SAME_DRAWS)


def test_a_result_of_another_dtype_is_listed_and_left() -> None:
    x, w = (torch.randn(shape, device="meta", dtype=torch.bfloat16) for shape in ((M, K), (K, N)))
    captured = capture_graphs(lambda x, w: torch.mm(x, w, out_dtype=torch.float32), x, w, policy="nvfp4", grad=False)
    (site,) = sites_of(captured)
    assert "dtype of its own" in str(site.reason)


class Einsums(nn.Module):
    """Queries, keys and values, and beside them a linear that reads the same; by einsum, or by matmul."""

    def __init__(self, by_einsum: bool) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.randn(K, N) for _ in range(3))
        self.linear, self.by_einsum = nn.Linear(K, N, bias=False), by_einsum

    def forward(self, x: Tensor) -> Tensor:
        made = [torch.einsum("bsh,hn->bsn", x, w) if self.by_einsum else torch.matmul(x, w) for w in self.weights]
        return torch.stack([*made, self.linear(x)])


@pytest.mark.parametrize("preset", ["metis", "metis-paper", "averis", "nvidia", "nvfp4"])
def test_an_einsum_with_a_weight_is_a_product_like_others(preset: str) -> None:
    """All three of its products are rewritten, and they share what is quantized."""
    x = torch.randn(2, M, K, requires_grad=True)
    captures = [capture_graphs(Einsums(by_einsum), x, policy=preset) for by_einsum in (True, False)]
    reasons = {(site.gemm, site.reason) for site in sites_of(captures[0])}
    assert reasons == {("fprop", None), ("dgrad", None), ("wgrad", None)}
    counts = [count(captured.graphs[0].joint_after, QUANTIZE) for captured in captures]
    assert counts[0] == counts[1] > 0


def test_a_batch_of_one_is_seen_where_sizes_are_dynamic() -> None:
    x = torch.randn(2, M, K, requires_grad=True)
    captured = capture_graphs(Einsums(True), x, policy="averis", dynamic=True)
    assert {site.reason for site in sites_of(captured)} == {None}


def test_a_condition_on_a_size_that_is_not_known_is_a_mistake_in_the_policy() -> None:
    class Chosen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(K, N)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x[x[:, 0] > 0])  # type: ignore[no-any-return]

    def policy_when(condition: str) -> Policy:
        return Policy.from_toml(
            f'[recipe.r]\nweight = "nvfp4"\nactivation = "nvfp4"\ngradient = "nvfp4"\n'
            f'[[rule]]\nwhen = "{condition}"\nrecipe = "r"'
        )

    model, x = Chosen(), torch.randn(M, K)
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        with pytest.raises(Exception, match=r"PolicyError: .*rule 1 .*when.*can't be decided for the fprop of linear"):
            capture_graphs(model, x, policy=policy_when("m % 16 == 0"), fullgraph=True)
        sites = sites_of(capture_graphs(model, x, policy=policy_when("k == 33"), fullgraph=True))
        # of wgrad k is the number of rows that are chosen: at most 20
        assert {site.gemm: site.reason is None for site in sites} == {"fprop": True, "wgrad": False}
        explained = metis_compile.explain(model, x, policy="metis")
        assert all(site.reason is None for site in explained.sites)
