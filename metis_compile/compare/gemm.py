"""The error of single products under each policy, on tensors of a model in training.

A model is trained in full precision; then inputs, weights and output gradients of its linears are taken as they are
(and as they were some steps before, for bases that are kept across steps), and each product is computed from operands
prepared as the policy says, with nothing else quantized. The error is the Frobenius norm of the difference to the
exact product, over the product's. A second and a third number come from quantizing one operand only, the other split
and transformed as it is: about independent, so that their squares add up to the first one's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metis_compile.compare.graphs import rewritten_graphs
from metis_compile.compare.run_config import RunConfig
from metis_compile.conditioning import Conditioned, kept_step, next_basis
from metis_compile.conditioning.hadamard import fixed_signs, signs_from
from metis_compile.conditioning.product import Prepared, prepare, product
from metis_compile.numerics import noise_shape, uniform_noise
from metis_compile.passes.graph.sites import Operand, Site
from metis_compile.policy import Treatment
from metis_compile.train import corpus
from metis_compile.train.llama import logits_of
from metis_compile.train.settings import Settings, derived_seed
from metis_compile.train.trainer import Trainer
from metis_compile.train.variant import FULL_PRECISION

__all__ = ["PRODUCTS", "GemmError", "Side", "Snapshot", "gemm_errors", "relative", "snapshots", "treatments_of"]

BEFORE = 8  # steps between the two snapshots
# The two operands of each product and the axis along which each is contracted: X and G are [tokens, features], W is
# [out, in]. With the contracted axis last they give A B^T.
PRODUCTS = {
    "fprop": (("activation", 1), ("weight", 1)),
    "dgrad": (("gradient", 1), ("weight", 0)),
    "wgrad": (("gradient", 0), ("activation", 0)),
}


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One linear at one step: activation [tokens, in], weight [out, in], gradient [tokens, out]; float32."""

    activation: Tensor
    weight: Tensor
    gradient: Tensor


@dataclass(frozen=True, kw_only=True)
class GemmError:
    """One product under one policy. Errors are relative; None where that operand is not quantized."""

    policy: str
    module: str
    gemm: str
    error: float | None
    left_error: float | None  # of the left operand alone
    right_error: float | None
    left: str  # role of the left operand
    right: str


def snapshots(settings: Settings, stepped: Any = None) -> tuple[nn.Module, list[dict[str, Snapshot]]]:
    """Trains in full precision for ``settings.steps`` and returns the model with two snapshots of its linears.

    The first is ``BEFORE`` steps (or as many as there were) older than the second. stepped: called with each step's
    number and loss.
    """
    text = corpus.load_library() if settings.text is None else corpus.load_file(Path(settings.text).expanduser())
    text.require(settings.context)
    with torch.random.fork_rng():
        trainer = Trainer(FULL_PRECISION, settings)
        found: list[dict[str, Snapshot]] = []
        for step in range(settings.steps):
            batch = text.batch(seed=settings.seed, step=step, batch=settings.batch, context=settings.context)
            tokens, targets = (part.to(settings.device) for part in batch)
            if step in (max(0, settings.steps - 1 - BEFORE), settings.steps - 1):
                found.append(take(trainer.model, tokens, targets))
            loss = trainer.step(step, tokens, targets)
            if stepped is not None:
                stepped(step + 1, loss)
    return trainer.model, [found[0], found[-1]]


def take(model: nn.Module, tokens: Tensor, targets: Tensor) -> dict[str, Snapshot]:
    """Every linear's tensors in one forward and backward; gradients of parameters are left as they were."""
    seen: dict[str, dict[str, Tensor]] = {}
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            tensors = seen.setdefault(name, {"weight": module.weight.detach().float().clone()})

            def forward(module: Any, args: Any, output: Tensor, tensors: dict[str, Tensor] = tensors) -> None:
                tensors["activation"] = args[0].detach().float().flatten(0, -2).clone()

                def backward(gradient: Tensor) -> None:
                    tensors["gradient"] = gradient.detach().float().flatten(0, -2).clone()

                output.register_hook(backward)

            hooks.append(module.register_forward_hook(forward))
    try:
        logits = logits_of(model(tokens))
        loss = nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
        torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])
    finally:
        for hook in hooks:
            hook.remove()
    return {name: Snapshot(**tensors) for name, tensors in seen.items()}


def gemm_errors(
    policy: str, model: nn.Module, tokens: Tensor, before: dict[str, Snapshot], now: dict[str, Snapshot]
) -> list[GemmError]:
    """The errors of every product of a linear that the policy quantizes, in the graph's order."""
    errors = []
    for module, gemm, treatments in treatments_of(policy, model, tokens):
        if module not in now:
            continue
        sides = [
            Side(role, axis, treatments.get(role), getattr(before[module], role), getattr(now[module], role), gemm)
            for role, axis in PRODUCTS[gemm]
        ]
        if all(side.treatment is None for side in sides):
            continue
        exact = product(*(side.plain() for side in sides))
        left, right = (side.prepared() for side in sides)
        errors.append(
            GemmError(
                policy=RunConfig(text=policy).name,
                module=module,
                gemm=gemm,
                error=relative(product(left, right), exact),
                left_error=relative(product(left, sides[1].unquantized()), exact) if sides[0].treatment else None,
                right_error=relative(product(sides[0].unquantized(), right), exact) if sides[1].treatment else None,
                left=sides[0].role,
                right=sides[1].role,
            )
        )
    return errors


class Side:
    """One operand of one product: how the policy treats it, and its values."""

    def __init__(
        self, role: str, axis: int, treatment: Treatment | None, before: Tensor, now: Tensor, gemm: str
    ) -> None:
        self.role, self.axis, self.treatment, self.before, self.now = role, axis, treatment, before, now
        self.only_saved = gemm == "wgrad" and role == "activation"
        self.stream = derived_seed(gemm, role) % 2**16

    def plain(self) -> Prepared:
        return prepare(self.now, axis=self.axis)

    def prepared(self) -> Prepared:
        """As the policy has it."""
        treatment, split = self.treatment, self.split
        if treatment is None or treatment.spec is None:
            return self.plain()
        residual = self.now if split is None else split.residual
        noise = None
        if treatment.spec.needs_noise:
            shape = list(residual.shape)
            if self._signs is not None:
                shape[self.axis] = -(-shape[self.axis] // 16) * 16
            noise = uniform_noise(self._seed, self.stream, noise_shape(shape, treatment.spec, self.axis))
        made = prepare(
            self.now,
            axis=self.axis,
            spec=treatment.spec,
            split=split,
            partner=self._partner,
            signs=self._signs,
            noise=noise,
            compensate=None if self.only_saved else treatment.split,
        )
        if self.only_saved:  # what backward has of it: packed residual and factors
            whole = made.plain if split is None else made.plain + made.outer @ made.inner  # type: ignore[operator]
            made = replace(made, x=whole, residual=made.plain)
        return made

    def unquantized(self) -> Prepared:
        """Split and transformed as the policy says, so that what the other operand is multiplied by stays the same.

        Residual and factors add up to the tensor, also where a policy does not fold the factors' rounding.
        """
        split = self.split
        if split is not None:
            split = split._replace(residual=self.now - split.left @ split.right)
        return prepare(self.now, axis=self.axis, split=split, partner=self._partner, signs=self._signs)

    @cached_property
    def _seed(self) -> Tensor:
        return torch.tensor([derived_seed("gemm", 0)], device=self.now.device)

    @cached_property
    def split(self) -> Conditioned | None:
        """Of the second snapshot, by a basis from the first where one is kept; None where the policy splits nothing."""
        how = None if self.treatment is None else self.treatment.split
        if how is None:
            return None
        return how.split(
            self.now, axis=self.axis, seed=self._seed, stream=self.stream, basis=self._basis(how, self._seed)
        )

    @cached_property
    def _signs(self) -> Tensor | None:
        if self.treatment is None or self.treatment.hadamard is None or self.treatment.hadamard_size is None:
            return None
        size = self.treatment.hadamard_size
        is_fixed = self.treatment.hadamard == "fixed"
        return fixed_signs(self._seed.device, size) if is_fixed else signs_from(self._seed, 1, size)

    @property
    def _partner(self) -> str:
        return str(getattr(None if self.treatment is None else self.treatment.split, "partner", "high"))

    def _basis(self, how: Any, seed: Tensor) -> Tensor | None:
        """A basis made at the first snapshot and, where the split follows its tensor, moved on at the second."""
        if kept_step(how) is None:
            return None
        first = how.fresh_basis(self.before, seed, stream=self.stream)
        tracks = kept_step(how).track
        count = None if tracks else torch.full([1], 2.0, device=first.device)
        if not tracks and BEFORE >= kept_step(how).refresh > 0:
            return first
        return next_basis(how, self.now, first, count, axis=self.axis, seed=seed, stream=self.stream)[0]


def treatments_of(policy: str, model: nn.Module, tokens: Tensor) -> list[tuple[str, str, dict[str, Treatment]]]:
    """(module, gemm, treatment by role) of each product with a weight that the policy quantizes."""
    found = []
    for graph in rewritten_graphs(model, tokens, policy):
        for site in graph.sites:
            if site.has_weight and site.lhs is not None and site.rhs is not None and site.reason is None:
                decided = {str(o.role): _ranked(graph.sites, site, o) for o in site.operands if o.decision is not None}
                found.append((site.module, str(site.gemm), {r: t for r, t in decided.items() if t.spec is not None}))
    return found


def _ranked(sites: Sequence[Site], site: Site, operand: Operand) -> Treatment:
    """The treatment with the rank that its split has for this tensor, the same for all products that read it."""
    assert operand.decision is not None
    treatment = operand.decision.treatment
    if treatment.split is None:
        return treatment
    far = [
        size
        for reader in sites
        if reader.gemm == site.gemm and reader.reason is None
        for read, size in zip(reader.operands, (reader.n, reader.m), strict=True)
        if read.base is operand.base and read.decision is not None and read.decision.treatment == treatment
    ]
    rows, columns = operand.base.meta["val"].shape
    return replace(treatment, split=treatment.split.with_rank(rows, columns, sum(far)))


def relative(value: Tensor, exact: Tensor) -> float:
    return float((value - exact).norm() / exact.norm())
