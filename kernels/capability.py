"""Which GPU kernels are made for, asked in one place."""

from __future__ import annotations

import torch

__all__ = ["capability_of", "copies_scales"]


def capability_of(device: torch.device) -> int:
    """90 for compute capability 9.0. Of a device that is no GPU: of what Triton makes kernels for, 0 for nothing."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return 10 * major + minor
    from triton.runtime import driver  # not every machine has it

    try:
        return int(driver.active.get_current_target().arch)
    except RuntimeError:  # there is no driver: a graph that is looked at, and never run
        return 0


def copies_scales(capability: int) -> bool:
    """Whether tensor cores take block scales from a memory of their own, to which they are copied: 10.x."""
    return 100 <= capability < 110
