"""Small models under a policy that keeps the bases of splits, and what they keep."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from graphs import eager_backend
from torch import Tensor

import metis_compile
from metis_compile import Policy


def policy(activation: str = "rank = 3", gradient: str = "rank = 2", rounding: str = "nearest") -> Policy:
    return Policy.from_toml(
        f"""
        [recipe.r]
        weight = "nvfp4"
        activation = {{ format = "nvfp4", split = {{ kind = "spectral", {activation} }} }}
        gradient = {{ format = "nvfp4", rounding = "{rounding}", split = {{ kind = "spectral", {gradient} }} }}
        [[rule]]
        has_weight = true
        recipe = "r"
        """
    )


POLICY = policy()


def compiled(model: Callable[..., Any], chosen: Policy | str = POLICY, **kwargs: Any) -> Any:
    return torch.compile(model, backend=eager_backend(chosen), **kwargs)


def batch(seed: int = 0, rows: int = 40, columns: int = 32) -> Tensor:
    """Three dominant directions, always the same, and noise."""
    g = torch.Generator().manual_seed(seed)
    directions = torch.randn(3, columns, generator=torch.Generator().manual_seed(1))
    return torch.randn(rows, 3, generator=g) @ directions + 0.3 * torch.randn(rows, columns, generator=g)


def state(model: Any) -> dict[str, Tensor]:
    """What is kept, as `up.weight.activation`, without the shapes of the parameters and of shares."""
    sites = metis_compile.state_dict(model).items()
    return {
        f"{site}.{part}": t for site, parts in sites for part, t in parts.items() if part not in ("parameter", "share")
    }


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def step(run: Callable[..., Tensor], x: Tensor, scale: Tensor | None = None) -> Tensor:
    y = run(x)
    y.backward(torch.ones_like(y) / len(x) if scale is None else scale)
    return y.detach()
