"""Errors of products summed up: by product, by the operand that is quantized, by kind of layer."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch

from metis_compile.compare.gemm import PRODUCTS, GemmError

__all__ = ["ALL", "by_gemm", "by_kind", "by_module", "by_operand", "kind_of", "kinds", "over"]

ALL = "all"  # both operands as the policy has them
Key = TypeVar("Key")


def kind_of(module: str) -> str:
    """What modules of different blocks have in common: ``blocks.0.attn.q`` is an ``attn.q``."""
    parts = module.split(".")
    last = max((i for i, part in enumerate(parts) if part.isdigit()), default=-1)
    return ".".join(parts[last + 1 :]) or module


def kinds(errors: Iterable[GemmError]) -> list[str]:
    """Kinds of layer, in the model's order."""
    return list(dict.fromkeys(kind_of(e.module) for e in errors))


def by_gemm(errors: Sequence[GemmError]) -> dict[str, float]:
    """The mean error of each product."""
    return _means({gemm: [e.error for e in errors if e.gemm == gemm] for gemm in PRODUCTS})


def over(errors: Sequence[GemmError], reference: Sequence[GemmError]) -> dict[str, float]:
    """For each product the mean ratio of errors to another policy's, over the layers that both quantize."""
    theirs = {(e.module, e.gemm): e.error for e in reference}
    ratios: dict[str, list[float | None]] = {gemm: [] for gemm in PRODUCTS}
    for e in errors:
        other = theirs.get((e.module, e.gemm))
        ratios[e.gemm].append(e.error / other if e.error is not None and other else None)
    return _means(ratios)


def by_operand(errors: Sequence[GemmError]) -> dict[tuple[str, str], float]:
    """For each product and role of an operand, the mean error with that operand alone quantized."""
    found: dict[tuple[str, str], list[float | None]] = {}
    for error in errors:
        for role, alone in operands(error).items():
            found.setdefault((error.gemm, role), []).append(alone)
    return _means(found)


def by_kind(errors: Sequence[GemmError]) -> dict[tuple[str, str], float]:
    """The mean error of each product of a kind of layer."""
    found: dict[tuple[str, str], list[float | None]] = {}
    for error in errors:
        found.setdefault((kind_of(error.module), error.gemm), []).append(error.error)
    return _means(found)


def by_module(errors: Sequence[GemmError]) -> dict[str, dict[str, dict[str, float | None]]]:
    """Nothing summed up: by module, product, and ``ALL`` or the role of the operand that alone is quantized."""
    found: dict[str, dict[str, dict[str, float | None]]] = {}
    for error in errors:
        found.setdefault(error.module, {})[error.gemm] = {ALL: error.error} | operands(error)
    return found


def operands(error: GemmError) -> dict[str, float | None]:
    """By role, the error with that operand alone quantized; None where it is not."""
    return {error.left: error.left_error, error.right: error.right_error}


def _means(values: dict[Key, list[float | None]]) -> dict[Key, float]:
    """Geometric means of what is there: each layer counts the same, however large its error."""
    there = {key: [v for v in of_key if v is not None] for key, of_key in values.items()}
    return {k: float(torch.tensor(v, dtype=torch.float64).log().mean().exp()) for k, v in there.items() if v}
