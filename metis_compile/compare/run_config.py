"""One way to train in a comparison: a policy, and what is done to the model beside it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from metis_compile.spelling import did_you_mean
from metis_compile.train.errors import TrainError
from metis_compile.train.settings import derived_seed
from metis_compile.train.variant import FULL_PRECISION, Variant, policy_variant

__all__ = ["BASELINE", "REDRAWN", "RunConfig"]

BASELINE = "high"  # trained by plain Inductor: what the others' gaps are to
RANK = 0.015  # of reparametrized weights
NUDGE = 1e-6  # relative change of every weight
PERTURBATION = 1e-2
REDRAWN = "redrawn"  # the change to other random numbers
CHANCE = {REDRAWN, "nudged", "perturbed", "shuffled"}


def reparametrized(model: nn.Module, seed: int) -> nn.Module:
    """Every linear but the head in four parts, as the first version of metis trains weights."""
    from metis_compile.weights.reparametrization import reparametrize

    names = [n for n, m in model.named_modules() if type(m) is nn.Linear and not n.endswith("lm_head")]
    return reparametrize(model, RANK, modules=names)


def nudged(model: nn.Module, seed: int) -> nn.Module:
    """Every weight off by a millionth: how well a run can be repeated."""
    return _scaled(model, "nudge", seed, NUDGE)


def perturbed(model: nn.Module, seed: int) -> nn.Module:
    """Every weight off by a hundredth, less than rounding to FP4 makes it: how far chance carries a run like it."""
    return _scaled(model, "perturbation", seed, PERTURBATION)


def shuffled(model: nn.Module, seed: int) -> nn.Module:
    """The elements of every parameter in another order, so the same distribution: how far chance carries a run."""
    generator = torch.Generator().manual_seed(derived_seed("shuffle", seed))
    with torch.no_grad():
        for parameter in model.parameters():
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return model


def _scaled(model: nn.Module, name: str, seed: int, by: float) -> nn.Module:
    """Each weight times 1 + ``by`` times a normal number of its own."""
    generator = torch.Generator().manual_seed(derived_seed(name, seed))
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.mul_(1 + by * noise.to(parameter.device))
    return model


CHANGES: dict[str, Callable[[nn.Module, int], nn.Module]] = {
    "reparametrized": reparametrized,
    "nudged": nudged,
    "perturbed": perturbed,
    "shuffled": shuffled,
}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Written ``policy`` or ``policy+change``: ``nvfp4``, ``run.toml``, ``high+nudged``, ``nvfp4+redrawn``."""

    text: str

    def __post_init__(self) -> None:
        if not self.policy:
            raise TrainError(f"a policy must stand before the + in {self.text!r}")
        known = [*CHANGES, REDRAWN]
        for change in self.changes:
            if change not in known:
                hint = did_you_mean(change, known, cutoff=0.6)
                raise TrainError(f"unknown change {change!r} in {self.text!r}: {' or '.join(known)}{hint}")

    @property
    def policy(self) -> str:
        """A preset's name or a policy file."""
        return self.text.split("+")[0]

    @property
    def changes(self) -> list[str]:
        """What is done to the model before it is compiled, and to the numbers that its rounding draws."""
        return self.text.split("+")[1:]

    @property
    def changes_the_start(self) -> bool:
        """Whether it cannot go on from where another arm is."""
        return any(change in CHANGES for change in self.changes)

    @property
    def is_chance(self) -> bool:
        """Whether it differs from its policy by chance alone: by random numbers, or by the weights at the start."""
        return bool(self.changes) and set(self.changes) <= CHANCE

    @property
    def name(self) -> str:
        """For tables and file names; of a policy file, its name without the folder."""
        return "+".join([Path(self.policy).name.removesuffix(".toml"), *self.changes])

    @property
    def is_baseline(self) -> bool:
        """Whether gaps are to this arm."""
        return self.text == BASELINE

    def variant(self) -> Variant:
        """How its model is compiled. Raises PolicyError if the policy cannot be loaded."""
        found = FULL_PRECISION if self.policy == BASELINE else policy_variant(self.policy)
        return Variant(
            label=self.name,
            backend=found.backend,
            options=found.options,
            digest=found.digest,
            changes=tuple(CHANGES[change] for change in self.changes if change in CHANGES),
            draw=REDRAWN if REDRAWN in self.changes else found.draw,
        )
