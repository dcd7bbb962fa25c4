"""The two ways a run compiles its model."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

__all__ = ["FULL_PRECISION", "Variant", "policy_variant"]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """How one of the two models is compiled."""

    label: str  # for people: the table's heading and the plot's legend
    backend: str  # torch.compile's
    options: dict[str, Any] | None = None  # torch.compile's
    digest: str = ""  # changes when what the options name changes; a resumed run checks it
    changes: tuple[Callable[[nn.Module, int], nn.Module], ...] = ()  # to the new model, given the run's seed
    draw: str = "noise"  # names the random numbers of its rounding


FULL_PRECISION = Variant(label="full precision", backend="inductor")


def policy_variant(policy: str, *, trust: bool = True) -> Variant:
    """The model under ``policy``: a preset's name, or the file of a policy or a schedule.

    ``trust`` as for Policy.load. Raises PolicyError.
    """
    from metis_compile.policy.schedule import load

    loaded = load(policy, trust=trust)
    label = Path(loaded.name).name.removesuffix(".toml")
    return Variant(label=label, backend="metis", options={"policy": loaded}, digest=loaded.digest())
