"""The three products of one rewritten linear, and what `conditioning.product` says that they are on the same draws.

What only the graph knows is taken from it: which stream a tensor draws from, and where it keeps a basis. All else,
splits, roundings and products, is computed from X, W and G by the reference.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple
from unittest import mock

import torch
from by_hand import SUMMATION_ORDER, relative_error
from graphs import capture_graphs, sites_of
from torch import Tensor, fx, nn

from metis_compile import Policy
from metis_compile.conditioning import (
    Conditioned,
    Mean,
    Prepared,
    fixed_signs,
    hadamard,
    next_basis,
    prepare,
    product,
    signs_from,
)
from metis_compile.numerics import noise_shape, uniform_noise
from metis_compile.numerics.estimator import dge_factor
from metis_compile.numerics.noise import stream_seed
from metis_compile.ops.state import LOAD, handle_of
from metis_compile.passes.graph.sites import Operand, Site
from metis_compile.passes.joint.tails import SIGN_STREAM, Conditioner


class Values(fx.Interpreter):
    """Remembers what each node gave."""

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm)
        self.of: dict[Any, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.of[n] = super().run_node(n)
        return self.of[n]


class Result(NamedTuple):
    """Of the graph, of the reference, and without any quantization."""

    actual: Tensor
    expected: Tensor
    exact: Tensor


class Split(NamedTuple):
    """A call that split a tensor: the name of its node, the contracted axis, the conditioning, the stream.

    made: the names of the residual and of both factors.
    """

    of: str
    axis: int
    how: Any
    stream: int
    made: tuple[str, str, str]


@dataclass(frozen=True, kw_only=True)
class Linear:
    """The joint graph of one linear, its products, its splits, and values for its inputs, by name."""

    gm: fx.GraphModule
    sites: list[Site]
    splits: list[Split]
    values: dict[str, Tensor]

    @property
    def held(self) -> dict[Any, Tensor]:
        """What lives across steps, by site and part."""
        held: Any = [value.held for value in self.values.values() if hasattr(value, "held")]
        return held[0].tensors if held else {}

    def kept(self, role: str, what: str, held: dict[Any, Tensor]) -> Tensor | None:
        """The "kept" basis of an operand, or its "count" of steps, among what is held; None for none."""
        for node in self.gm.graph.nodes:
            if node.target is LOAD and node.name.endswith(f"_{role}_{what}"):
                return held[node.args[1], node.args[2]]
        return None


class Held:
    """What lives across steps, for one graph that is run by itself."""

    def __init__(self, gm: fx.GraphModule, generator: torch.Generator) -> None:
        self.tensors: dict[Any, Tensor] = {}
        self.generator = generator
        for node in gm.graph.find_nodes(op="call_function", target=LOAD):
            site, part, shape = list[Any](node.args)[1:4]
            self.load(site, part, shape, torch.device("cpu"))

    def load(self, site: str, part: str, shape: Any, device: torch.device) -> Tensor:
        if (site, part) not in self.tensors:  # the graph before its rewrite reads nothing
            self.tensors[site, part] = torch.randn(shape, generator=self.generator)
        return self.tensors[site, part]

    def store(self, site: str, part: str, value: Tensor) -> None:
        self.tensors[site, part].copy_(value)


@contextmanager
def recorded() -> Iterator[list[Split]]:
    found: list[Split] = []
    original = Conditioner.split

    def recording(self: Conditioner, operand: Operand, split: Any, stream: int, *more: Any, **named: Any) -> Any:
        parts = original(self, operand, split, stream, *more, **named)
        made = (parts.residual.name, parts.left.name, parts.right.name)
        found.append(Split(operand.base.name, operand.axis, split, stream, made))
        return parts

    with mock.patch.object(Conditioner, "split", recording):
        yield found


def linear_graph(
    policy: Policy | str,
    tokens: int,
    inputs: int,
    outputs: int,
    *,
    steps: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Linear:
    """Three different sizes. steps: how many a basis has served for already; 0: none is there yet."""
    model = nn.Linear(inputs, outputs, bias=False, dtype=dtype)
    with recorded() as splits:
        captured = capture_graphs(model, torch.randn(tokens, inputs, requires_grad=True, dtype=dtype), policy=policy)
    sites = sites_of(captured)
    assert {s.gemm: s.reason for s in sites} == dict.fromkeys(("fprop", "dgrad", "wgrad"))
    gm = captured.graphs[0].joint_after
    assert gm is not None
    linear = Linear(gm=gm, sites=sites, splits=splits, values=values_for(gm))
    for role in ("activation", "weight", "gradient"):
        count, basis = (linear.kept(role, what, linear.held) for what in ("count", "kept"))
        if count is not None:
            count.fill_(steps)
        if basis is not None and steps:
            basis.copy_(torch.linalg.qr(basis.T)[0].T)
    return linear


def values_for(gm: fx.GraphModule, seed: int = 0) -> dict[str, Tensor]:
    """For each input of a graph; matrices have a mean and a few large directions, as activations have."""
    generator = torch.Generator().manual_seed(seed)
    values = {}
    held = Held(gm, generator)
    for node in gm.graph.find_nodes(op="placeholder"):
        shape = node.meta["val"].shape
        if node.meta["val"].dtype == torch.int64:  # a handle of what lives across steps
            values[node.name] = handle = handle_of(held)
            handle.held = held  # type: ignore[attr-defined]
            continue
        x = torch.randn(shape, generator=generator)
        if len(shape) == 2:
            directions = torch.randn(4, shape[1], generator=generator)
            x += 2 * torch.randn(shape[0], 4, generator=generator) @ directions + 2 * directions[0]
        laid_out = torch.empty_strided(shape, node.meta["val"].stride(), dtype=node.meta["val"].dtype)
        values[node.name] = laid_out.copy_(x)
    return values


def results(linear: Linear) -> dict[str, Result]:
    """By the product (the output and both gradients), and by operand where its basis is kept: the next one."""
    run, values = Values(linear.gm), {name: value.clone() for name, value in linear.values.items()}
    before = {name: value.clone() for name, value in linear.held.items()}
    outputs = [v for v in run.run(*values.values()) if v is not None]
    after = {name: value.clone() for name, value in linear.held.items()}
    for name, value in before.items():
        linear.held[name].copy_(value)
    seed = next((v for n, v in run.of.items() if n.name == "metis_seed"), torch.zeros(1, dtype=torch.int64))
    found = {}
    for site in linear.sites:
        (actual,) = (v for v in outputs if tuple(v.shape) == (site.m, site.n))
        a, b = (prepared(linear, site, operand, seed) for operand in site.operands)
        exact = product(*(prepare(linear.values[o.base.name], axis=o.axis) for o in site.operands))
        if site.gemm == "wgrad":
            a, b = _as_saved(site, a, b)
        result = product(a, b)
        if site.gemm == "wgrad":
            result = result * _estimated(linear)
        found[site.gemm] = Result(actual, result.to(actual.dtype), exact)
        for operand in site.operands:
            basis = linear.kept(operand.role, "kept", after)
            if basis is not None:
                was = linear.kept(operand.role, "kept", before)
                expected = _next_basis(linear, operand, seed)
                assert was is not None
                assert expected is not None
                found[f"{operand.role} basis"] = Result(basis, expected, was)
    return found


def _as_saved(site: Site, a: Prepared, b: Prepared) -> tuple[Prepared, Prepared]:
    """In backward the activation is there as the large product reads it: no other operand's factors read it high.

    Between means in high precision ones read its mean alone: the sums of what is left over the tokens are zero.
    """
    assert site.lhs is not None
    splits = [o.decision.treatment.split for o in site.operands if o.decision is not None]
    if all(isinstance(s, Mean) and s.cross_terms_are_zero and s.partner == "high" for s in splits):
        a, b = (replace(side, plain=torch.zeros_like(side.plain)) for side in (a, b))
    if site.lhs.role == "activation":
        return a, replace(b, partner="residual" if a.spec is not None else b.partner)
    return replace(a, partner="residual" if b.spec is not None else a.partner), b


def _estimated(linear: Linear) -> Tensor:
    """What stands for the derivative of rounding the weight, [outputs, inputs]; 1 without an estimator."""
    (weight,) = (o for site in linear.sites if site.gemm == "fprop" for o in site.operands if o.role == "weight")
    assert weight.decision is not None
    treatment = weight.decision.treatment
    if treatment.estimator is None or treatment.spec is None:
        return torch.ones(())
    return dge_factor(linear.values[weight.base.name], treatment.spec, weight.axis)


def prepared(linear: Linear, site: Site, operand: Operand, seed: Tensor) -> Prepared:
    assert operand.decision is not None
    treatment, axis = operand.decision.treatment, operand.axis
    x = linear.values[operand.base.name].to(torch.float32)
    how = split = signs = noise = None
    if treatment.split is not None:
        first = _calls(linear, operand)[0]
        how = first.how
        own = next(s for s in _calls(linear, operand) if s.axis == axis or not getattr(how, "depends_on_axis", False))
        basis = _next_basis(linear, operand, seed)
        split = how.split(x, axis=axis, seed=stream_seed(seed, own.stream), basis=basis)
        if all(name in linear.values for name in own.made):
            split = _as_made(split, Conditioned(*(linear.values[name] for name in own.made)))
    if treatment.hadamard is not None:
        size = int(treatment.hadamard_size or 0)
        is_fixed = treatment.hadamard == "fixed"
        signs = fixed_signs(size=size) if is_fixed else signs_from(seed, SIGN_STREAM, size)
    if treatment.spec is not None and treatment.spec.needs_noise:
        assert operand.quantized is not None
        stream: Any = operand.quantized.args[4]
        shape = (x if signs is None else hadamard(x, axis, signs)).shape
        noise = uniform_noise(seed, stream, noise_shape(shape, treatment.spec, axis))
    only_saved = site.gemm == "wgrad" and operand.role == "activation"
    return prepare(
        x,
        axis=axis,
        spec=treatment.spec,
        split=split,
        partner=str(getattr(how, "partner", "high")),
        signs=signs,
        noise=noise,
        compensate=None if only_saved else how,  # what that takes, the tensor itself, is not saved
    )


def _as_made(expected: Conditioned, made: Conditioned) -> Conditioned:
    """What the graph made of a split, when it is what is expected.

    A factor is a product that is rounded to bfloat16. BLAS may sum it in another order where the same matrix lies
    otherwise in memory, and a number on the edge then falls to its neighbour, 2^-8 away. The residual of its row is far
    smaller, and moves to other codes in many places: the product is off by as much as if it were in bfloat16.
    """
    for ours, reference in ((made.left, expected.left), (made.right, expected.right)):
        largest = float(reference.abs().max())
        torch.testing.assert_close(ours, reference, rtol=2.0**-7, atol=1e-5 * largest)
    of_the_residual = relative_error(made.residual, expected.residual)
    # what one factor has more the residual has less; where factors are not folded, it does not know of their rounding
    whole, wanted = (p.residual + p.left @ p.right for p in (made, expected))
    assert min(of_the_residual, relative_error(whole, wanted)) < SUMMATION_ORDER
    return made


def _next_basis(linear: Linear, operand: Operand, seed: Tensor) -> Tensor | None:
    kept, count = (linear.kept(operand.role, what, linear.held) for what in ("kept", "count"))
    if kept is None:
        return None
    first, x = _calls(linear, operand)[0], linear.values[operand.base.name]
    return next_basis(first.how, x, kept, count, axis=first.axis, seed=stream_seed(seed, first.stream))[0]


def _calls(linear: Linear, operand: Operand) -> list[Split]:
    return [split for split in linear.splits if split.of == operand.base.name]
