"""The three products of a mixture's experts, rewritten, and what `conditioning.product` says of each expert alone.

All tokens are split and quantized as one matrix, and all weights as one tensor; each expert then has a product of its
own, of its rows of the tokens in forward and dgrad, and of its part of what is contracted in wgrad.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch
from graphs import capture_graphs, sites_of
from torch import Tensor, nn
from written_out import Linear, Result, Values, prepared, recorded, values_for

from metis_compile import Policy
from metis_compile.conditioning import Prepared, prepare, product
from metis_compile.conditioning.factors import partner_spec
from metis_compile.numerics import fake_quantize, noise_shape, uniform_noise
from metis_compile.passes.graph.sites import Operand, Site


class Experts(nn.Module):
    """Weights as transformers keeps them, and the two operators by which it multiplies them."""

    def __init__(self, experts: int, inputs: int, outputs: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(experts, outputs, inputs, dtype=dtype))

    def forward(self, x: Tensor, offs: Tensor) -> Tensor:
        if x.dtype == torch.bfloat16:
            return torch._grouped_mm(x, self.weight.mT, offs=offs)
        return torch.ops.transformers.grouped_mm_fallback(x, self.weight.mT, offs)  # type: ignore[no-any-return]


def experts_graph(
    policy: Policy | str,
    tokens: int,
    inputs: int,
    outputs: int,
    offs: list[int],
    *,
    dtype: torch.dtype = torch.float32,
) -> Linear:
    """Sizes that differ. ends: the last may lie before the last token."""
    model = Experts(len(offs), inputs, outputs, dtype)
    x = torch.randn(tokens, inputs, requires_grad=True, dtype=dtype)
    with recorded() as splits:
        captured = capture_graphs(model, x, torch.tensor(offs, dtype=torch.int32), policy=policy)
    gm = captured.graphs[0].joint_after
    assert gm is not None
    values = values_for(gm)
    for name, value in values.items():
        if value.dtype == torch.int32:
            values[name] = torch.tensor(offs, dtype=torch.int32)
    return Linear(gm=gm, sites=sites_of(captured), splits=splits, values=values)


def expert_results(linear: Linear, outputs: int, inputs: int) -> dict[str, Result]:
    """By the product; what belongs to no group is left out of what the graph made."""
    run = Values(linear.gm)
    torch.manual_seed(0)
    before = {name: value.clone() for name, value in linear.held.items()}
    made = [v for v in run.run(*(v.clone() for v in linear.values.values())) if v is not None]
    for name, value in before.items():
        linear.held[name].copy_(value)
    seed = next((v for n, v in run.of.items() if n.name == "metis_seed"), torch.zeros(1, dtype=torch.int64))
    between = {node.name: value for node, value in run.of.items() if isinstance(value, Tensor)}
    seen = replace(linear, values=between | linear.values)  # the inputs as they were: state is written to
    (offs,) = (value.tolist() for value in linear.values.values() if value.dtype == torch.int32)
    spans = [slice(start, end) for start, end in zip([0, *offs], offs, strict=False)]
    found = {}
    for site in linear.sites:
        columns = outputs if site.gemm == "fprop" else inputs
        (actual,) = (v for v in made if v.shape[-1] == columns and (v.dim() == 3) == (site.gemm == "wgrad"))
        if site.gemm == "wgrad":
            pairs = [
                _sides_of_wgrad(seen, site, seed),
                [prepare(seen.values[o.base.name], axis=o.axis) for o in site.operands],
            ]
            expected, exact = (
                torch.stack([product(*(_contracted(side, span) for side in pair)) for span in spans]) for pair in pairs
            )
            if actual.shape != expected.shape:  # transposed after the product
                actual = actual.mT
        else:
            assert site.lhs is not None
            assert site.rhs is not None
            tokens = prepared(seen, site, site.lhs, seed)
            plain = prepare(seen.values[site.lhs.base.name], axis=1)
            weights, untouched = _weights(seen, site.rhs, seed)
            expected = torch.cat([product(_rows(tokens, span), w) for span, w in zip(spans, weights, strict=True)])
            exact = torch.cat([product(_rows(plain, span), w) for span, w in zip(spans, untouched, strict=True)])
            assert not actual[len(expected) :].any(), "tokens of no group"
            actual = actual[: len(expected)]
        found[site.gemm] = Result(actual, expected.to(actual.dtype), exact)
    return found


def _sides_of_wgrad(linear: Linear, site: Site, seed: Tensor) -> list[Prepared]:
    """What of the activation is at hand is what was saved; partners are rounded as one matrix, before they are cut."""
    a, b = (prepared(linear, site, operand, seed) for operand in site.operands)
    quantized = {operand.role: side.spec is not None for operand, side in zip(site.operands, (a, b), strict=True)}
    partners = [
        "residual" if operand.role == "gradient" and quantized["activation"] else side.partner
        for operand, side in zip(site.operands, (a, b), strict=True)
    ]
    return [_rounded_for(a, partners[1], partners[0]), _rounded_for(b, partners[0], partners[1])]


def _rounded_for(side: Prepared, partner: str, own: str) -> Prepared:
    """partner: what the other operand's factors read of this one. own: what its own read."""
    chosen = None if side.spec is None or partner == "residual" else partner_spec(partner, side.spec)
    if chosen is not None:
        x, residual = (fake_quantize(value, chosen, 1) for value in (side.x, side.residual))
        side = replace(side, x=x, residual=residual)
    return replace(side, spec=None, partner=own)


def _weights(linear: Linear, operand: Operand, seed: Tensor) -> tuple[list[Prepared], list[Prepared]]:
    """Each expert's matrix, with the contracted axis last: rounded, and as it is."""
    assert operand.decision is not None
    spec, axis = operand.decision.treatment.spec, operand.axis
    w = rounded = linear.values[operand.base.name].to(torch.float32)
    if spec is not None:
        noise = None
        if spec.needs_noise:
            assert operand.quantized is not None
            stream: Any = operand.quantized.args[4]
            noise = uniform_noise(seed, stream, noise_shape(w.shape, spec, axis))
        rounded = fake_quantize(w, spec, axis, noise)
    if axis == 1:
        w, rounded = w.mT, rounded.mT
    plain = [prepare(matrix, axis=1) for matrix in w]
    return [replace(p, rounded=r, plain=r, spec=spec) for p, r in zip(plain, rounded, strict=True)], plain


def _rows(side: Prepared, span: slice) -> Prepared:
    return _part(side, span, ("x", "residual", "rounded", "plain", "outer"), 0)


def _contracted(side: Prepared, span: slice) -> Prepared:
    return _part(side, span, ("x", "residual", "rounded", "plain", "inner"), 1)


def _part(side: Prepared, span: slice, names: tuple[str, ...], dim: int) -> Prepared:
    assert {f.name for f in fields(side)} >= set(names)
    parts = {name: getattr(side, name) for name in names}
    index = (span,) if dim == 0 else (slice(None), span)
    return replace(side, **{name: None if x is None else x[index] for name, x in parts.items()})
