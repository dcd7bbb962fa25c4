"""What a checkpoint of a run holds of metis: what the compiled model keeps across steps, and under which policy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from metis_compile.policy import Policy, Schedule
from metis_compile.state import load_state_dict, state_dict


def saved(model: nn.Module, policy: Policy | Schedule) -> dict[str, Any]:
    """Texts and tensors alone, fit for `torch.load(..., weights_only=True)`."""
    return {"policy": policy.name, "digest": policy.digest(), "kept": state_dict(model)}


def restore(model: nn.Module, given: Any, policy: Policy | Schedule, where: str) -> str | None:
    """Puts back what `saved` gave. Returns None, or why nothing was put back, in a sentence to print.

    where: what holds it, for the sentence and the error. Raises ValueError for what `saved` did not make, and as
    `metis_compile.load_state_dict` does.
    """
    if not isinstance(given, Mapping) or not {"policy", "digest", "kept"} <= set(given):
        raise ValueError(f"metis: {where} is not what this callback saves: it must hold policy, digest and kept")
    if given["digest"] != policy.digest():
        return (
            f"metis: {where} is of the policy {given['policy']}, and this run's is {policy.name}: what that kept "
            "across steps is not taken over, and bases start anew"
        )
    load_state_dict(model, given["kept"])
    return None
