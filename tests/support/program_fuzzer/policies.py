"""Random policies: formats, roundings, splits, transforms and rules, as text."""

from __future__ import annotations

import random

from metis_compile import presets
from metis_compile.numerics import FORMATS

OWN = "own_conditioning:LargestColumns"
RANKS = ("1", "2", "3", "0.05", '"auto"')
OPERANDS = ("weight", "activation", "gradient")
NAMES = (None, "bfloat16", "high", "nvfp4", "mxfp8", "fp8", "nvfp4 1x16 stochastic none")


def preset_or_policy(rng: random.Random) -> str:
    """The text of a policy of any kind."""
    if rng.random() < 0.3:
        return f'extends = "{rng.choice(presets())}"'
    return _policy(
        rng, lambda role: _treatment(rng, random_rounding=True, split=_split(rng, lossy=True), hadamard=True)
    )


def nearest(rng: random.Random, *, alike: bool) -> str:
    """All operands to nearest, without splits. alike: one treatment for all; otherwise rules tell them apart."""
    one = _treatment(rng)
    if alike:
        return _file([[one] * 3], ['recipe = "r0"'])
    return _policy(rng, lambda role: _treatment(rng), modules=False)


def splits(rng: random.Random) -> str:
    """Splits and transforms that lose nothing but what is quantized."""
    hadamard = rng.choice(["", "", ', hadamard = "fixed"', ', hadamard = "fresh"'])

    def treatment(role: str) -> str:
        text = _treatment(rng, random_rounding=True, split=_split(rng, lossy=False))
        return text.removesuffix(" }") + hadamard + " }"

    return _policy(rng, treatment)


def _policy(rng: random.Random, treatment, modules: bool = True) -> str:  # type: ignore[no-untyped-def]
    count = rng.randint(1, 3)
    recipes = [[treatment(role) if rng.random() < 0.9 else '"high"' for role in OPERANDS] for _ in range(count)]
    rules = [
        f'{_conditions(rng, modules)}recipe = "{rng.choice(["r0", f"r{count - 1}", "high"])}"'
        for _ in range(rng.randint(0, 3))
    ]
    return _file(recipes, [*rules, 'recipe = "r0"'])


def _file(recipes: list[list[str]], rules: list[str]) -> str:
    lines = []
    for number, treatments in enumerate(recipes):
        lines.append(f"[recipe.r{number}]")
        lines += [f"{role} = {text}" for role, text in zip(OPERANDS, treatments, strict=True)]
    for rule in rules:
        lines += ["[[rule]]", rule]
    return "\n".join(lines)


def _conditions(rng: random.Random, modules: bool) -> str:
    conditions = [
        *[
            'gemm = "fprop"',
            'gemm = ["dgrad", "wgrad"]',
            'gemm = "wgrad"',
            'operand = "weight"',
            'operand = "gradient"',
        ],
        *["has_weight = false", 'dtype = "bfloat16"', 'when = "k % 16 == 0"', 'when = "m * n > 400"', 'when = "n < k"'],
    ]
    if modules:
        conditions += ['module = "*m0"', 'op = ["linear", "addmm"]', 'kind = "attention"', 'kind = ["head", "router"]']
    return f"{rng.choice(conditions)}\n"


def _treatment(rng: random.Random, *, random_rounding: bool = False, split: str = "", hadamard: bool = False) -> str:
    format = FORMATS[rng.choice(list(FORMATS))]
    block = rng.choice(format.blocks)
    rounding = rng.choice(format.roundings) if random_rounding else "nearest"
    parts = [f'format = "{format.name}"', f'block = "{block}"', f'rounding = "{rounding}"']
    if rounding == "stochastic":
        parts.append(f'guard = "{rng.choice(format.guards)}"')
    modes = format.scale_modes or format.optional_scale_modes(block)
    if modes and rng.random() < 0.5:
        parts.append(f'scale_mode = "{rng.choice(modes)}"')
    if format.selects(rounding) and rng.random() < 0.3:
        parts.append(f'four_over_six = "{rng.choice(format.selects(rounding))}"')
    if hadamard and rng.random() < 0.2:
        parts.append(f'hadamard = "{rng.choice(["fixed", "fresh"])}"')
    return "{ " + ", ".join(parts) + split + " }"


def _split(rng: random.Random, *, lossy: bool) -> str:
    """One step, or two of which the last alone keeps a basis; the steps of a list have one partner."""
    kinds = rng.choice(
        [[], ["mean"], ["spectral"], ["spectral"], [OWN], ["mean", "spectral"], [OWN, "spectral"], ["spectral"] * 2]
    )
    if not kinds:
        return ""
    partner = None if OWN in kinds else rng.choice([None, "high", "e4m3 row", "residual"])
    steps = [_step(rng, kind, partner, lossy=lossy, last=i == len(kinds) - 1) for i, kind in enumerate(kinds)]
    return f", split = {steps[0] if len(steps) == 1 else '[' + ', '.join(steps) + ']'}"


def _step(rng: random.Random, kind: str, partner: str | None, *, lossy: bool, last: bool) -> str:
    parts = [f'kind = "{kind}"']
    if kind == OWN:
        return "{ " + ", ".join([*parts, f"count = {rng.randint(1, 2)}"]) + " }"
    if partner:
        parts.append(f'partner = "{partner}"')
    factors = rng.choice(NAMES)
    if factors:
        parts.append(f'factors = "{factors}"')
    if lossy and rng.random() < 0.2:
        parts.append("fold = false")
    if kind == "spectral":
        parts.append(f"rank = {rng.choice(RANKS)}")
        parts.append(f"refresh = {rng.choice([0, 0, 1, 4]) if last else 1}")
        parts += rng.choice(
            [
                [],
                [],
                ["track = false"],
                ["power_steps = 0"],
                ['sketch = "signs"'],
                ["track_share = 0.5"],
                ["sample = 1.0"],
            ]
        )
        if last and rng.random() < 0.2:
            parts.append("compensate = true")
    return "{ " + ", ".join(parts) + " }"
