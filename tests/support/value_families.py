"""Kinds of values that quantization meets, by name: each a function (generator, shape) -> float32 array."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def _sign(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return np.where(rng.random(shape) < 0.5, -1.0, 1.0)


def _outlier_columns(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    columns = np.where(rng.random(shape[-1:]) < 0.1, 100.0, 1.0) if shape else 1.0
    return rng.standard_normal(shape) * columns


def _ties(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Midpoints of E2M1 and of E4M3 near 1, with 6 among them so that scales tend to be exact."""
    e2m1 = rng.choice([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0], shape)
    e4m3 = 1 + rng.integers(0, 16, shape) / 16
    return _sign(rng, shape) * np.where(rng.random(shape) < 0.7, e2m1, e4m3)


FAMILIES = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "lognormal": lambda rng, shape: _sign(rng, shape) * rng.lognormal(0, 3, shape),
    "outlier_columns": _outlier_columns,
    "mean_shifted": lambda rng, shape: rng.standard_normal(shape) + 10,
    "ties": _ties,
    "powers_of_two": lambda rng, shape: _sign(rng, shape) * 2.0 ** rng.integers(-20, 20, shape),
    "zeros": lambda rng, shape: _sign(rng, shape) * np.where(rng.random(shape) < 0.9, 0.0, 1.0),
    "all_zero": lambda rng, shape: _sign(rng, shape) * 0.0,
    "subnormal": lambda rng, shape: _sign(rng, shape) * rng.integers(0, 5000, shape) * 2.0**-149,
    "tiny": lambda rng, shape: rng.standard_normal(shape) * 2.0**-126,
    "huge": lambda rng, shape: np.clip(rng.standard_normal(shape), -2, 2) * float(np.finfo(np.float32).max) / 2,
    "all_magnitudes": lambda rng, shape: _sign(rng, shape) * 2.0 ** rng.uniform(-149, 127, shape),
}


def draw(family: str, seed: int, shape: tuple[int, ...]) -> Array:
    return np.asarray(FAMILIES[family](np.random.default_rng(seed), shape)).astype(np.float32)
