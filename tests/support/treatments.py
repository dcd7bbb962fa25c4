"""Ways to treat the operands of a linear, by name, and policies of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from metis_compile import Policy

ROLES = ("weight", "activation", "gradient")
PARTNERS = ("high", "e4m3 row", "residual")
SPLITS = {
    **{f"mean, {p}": f'{{ kind = "mean", partner = "{p}" }}' for p in PARTNERS},
    **{f"spectral, {p}": f'{{ kind = "spectral", rank = 3, refresh = 1, partner = "{p}" }}' for p in PARTNERS},
    "exact mean": '{ kind = "mean", factors = "high" }',
    "exact mean, e4m3 row": '{ kind = "mean", factors = "high", partner = "e4m3 row" }',
    "spectral, kept": '{ kind = "spectral", rank = 2, refresh = 4 }',
    "chain": '["mean", { kind = "spectral", rank = 2, refresh = 1 }]',
    "chain, residual": (
        '[{ kind = "mean", partner = "residual" }, { kind = "spectral", rank = 2, refresh = 1, partner = "residual" }]'
    ),
    "compensated": '{ kind = "spectral", rank = 3, refresh = 1, compensate = true }',
    "compensated, residual": '{ kind = "spectral", rank = 3, refresh = 1, compensate = true, partner = "residual" }',
    "compensated chain, kept": '["mean", { kind = "spectral", rank = 3, compensate = true }]',
    "mean as published": '{ kind = "mean", factors = "nvfp4", fold = false, partner = "residual" }',
    "spectral as published": (
        '{ kind = "spectral", rank = 2, factors = "nvfp4", fold = false, partner = "residual", refresh = 1 }'
    ),
    "channels": '{ kind = "channels", share = 0.1 }',
    "channels, residual": '{ kind = "channels", share = 0.1, partner = "residual" }',
    "whole channels": '{ kind = "channels", share = 0.1, take = "whole" }',
    "clamp": '{ kind = "clamp" }',
    "clamp, residual": '{ kind = "clamp", quantile = 0.95, partner = "residual" }',
    "clamped channels": '[{ kind = "clamp" }, { kind = "channels", share = 0.1 }]',
    "user's own": '{ kind = "own_conditioning:LargestColumns", count = 2 }',
}
QUANTIZERS = {
    "high": 'format = "high"',
    "nvfp4": 'format = "nvfp4"',
    "mxfp4": 'format = "mxfp4"',
    "fp8": 'format = "fp8"',
    "16x16": 'format = "nvfp4", block = "16x16"',
    "4/6": 'format = "nvfp4", four_over_six = "mse"',
    "stochastic 4/6": 'format = "nvfp4", rounding = "stochastic", four_over_six = "expected"',
    "turned": 'format = "nvfp4", hadamard = "fixed"',
    "mxfp4, turned": 'format = "mxfp4", hadamard = "fixed"',
    "mxfp4, turned by 32": 'format = "mxfp4", hadamard = "fixed", hadamard_size = 32',
    "stochastic, turned by 64": 'format = "nvfp4", hadamard = "fresh", hadamard_size = 64, rounding = "stochastic"',
    "stochastic, turned": 'format = "nvfp4", hadamard = "fresh", rounding = "stochastic", guard = "round_up"',
    "eden, turned": 'format = "nvfp4", hadamard = "fresh", rounding = "eden"',
}

Treatment = tuple[str, str | None]  # the names of a quantizer and of a split


def policy(*treatments: Treatment) -> Policy:
    """Weight, activation and gradient of every linear."""
    return policy_of({"*": treatments})


def policy_of(modules: Mapping[str, Sequence[Treatment]]) -> Policy:
    """The same by the linears' names."""
    lines = []
    for number, (module, treatments) in enumerate(modules.items()):
        lines.append(f"[recipe.r{number}]")
        for role, (quantizer, split) in zip(ROLES, treatments, strict=True):
            text = "" if split is None else f", split = {SPLITS[split]}"
            lines.append(f"{role} = {{ {QUANTIZERS[quantizer]}{text} }}")
        lines.append(f'[[rule]]\nmodule = "{module}"\nrecipe = "r{number}"')
    return Policy.from_toml("\n".join(sorted(lines, key=lambda line: line.startswith("[[rule"))))
