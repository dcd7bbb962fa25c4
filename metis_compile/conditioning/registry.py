"""Conditionings by name: the built-in ones, and a user's own as "package.module:Class"."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from metis_compile.conditioning.base import Conditioned, Conditioning, as_conditioning, derived
from metis_compile.conditioning.chain import Chain
from metis_compile.conditioning.channels import Channels
from metis_compile.conditioning.clamp import Clamp
from metis_compile.conditioning.mean import Mean
from metis_compile.conditioning.spectral import Spectral
from metis_compile.conditioning.validation import check_name

KINDS: dict[str, type[Any]] = {"mean": Mean, "spectral": Spectral, "channels": Channels, "clamp": Clamp}


def conditioning_class(kind: str) -> type[Any]:
    """The class of a kind: of KINDS, or "package.module:Class", which is imported.

    Raises ValueError for a name that is neither, a module or class that isn't there, or one that can't serve.
    """
    if ":" not in kind:
        check_name("kind", kind, [*KINDS, "package.module:Class"])
        if kind in KINDS:
            return KINDS[kind]
        raise ValueError(f"kind must name a class of yours in place of {kind!r}")
    module_name, _, class_name = kind.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the module is run, and may raise anything, SystemExit too
        said = " ".join(str(error).split())
        said = said if isinstance(error, (ImportError, AttributeError)) else f"{type(error).__name__} {said}"
        raise ValueError(
            f"kind {kind!r} can't be imported: {said} (a split that names a class imports, "
            f"and so runs, the module {module_name!r})"
        ) from None
    if not (isinstance(found, type) and is_dataclass(found) and callable(getattr(found, "split", None))):
        raise ValueError(f"kind {kind!r} must be a frozen dataclass with a method split(x, *, axis, ...)")
    if not found.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise ValueError(f"kind {kind!r} must be a frozen dataclass: @dataclass(frozen=True, kw_only=True)")
    return derived(found)


def kind_of(conditioning: Conditioning) -> str:
    """The name that :func:`conditioning_class` knows its class by."""
    for name, built_in in KINDS.items():
        if type(conditioning) is built_in:
            return name
    return f"{type(conditioning).__module__}:{type(conditioning).__qualname__}"


def settings_of(conditioning: Conditioning) -> dict[str, Any]:
    """Its fields, by name, in their order."""
    return {field.name: getattr(conditioning, field.name) for field in fields(conditioning)}  # type: ignore[arg-type]


def steps_of(conditioning: Conditioning) -> tuple[Conditioning, ...]:
    """The steps of a chain; of anything else, itself."""
    return conditioning.steps if isinstance(conditioning, Chain) else (as_conditioning(conditioning),)


def as_read(conditioning: Any, x: Tensor) -> Tensor:
    """x as its split takes it: a class of the user's own is given float32."""
    built_in = all(type(step) in KINDS.values() for step in steps_of(conditioning))
    return x if built_in else x.to(torch.float32)


def describe(conditioning: Conditioning) -> str:
    """A short text, the same for equal conditionings only: "mean + spectral rank=8 factors=high"."""
    texts = []
    for step in steps_of(conditioning):
        defaults = {field.name: field.default for field in fields(step) if field.default is not MISSING}  # type: ignore[arg-type]
        words = [kind_of(step)]
        for name, value in settings_of(step).items():
            if name not in defaults or value != _settled(step, name, defaults[name]):
                text = str(value).lower() if isinstance(value, bool) else str(value)
                words.append(f"{name}={f'({text})' if ' ' in text else text}")
        texts.append(" ".join(words))
    return " + ".join(texts)


def split(
    x: Tensor,
    kind: str | Sequence[str | Mapping[str, Any]] | Conditioning = "spectral",
    *,
    axis: int = 1,
    seed: Tensor | None = None,
    basis: Tensor | None = None,
    **settings: Any,
) -> Conditioned:
    """Split x into a residual and a thin product: ``x == residual + left @ right`` to rounding.

    x: [..., columns], float32 or narrower; leading dimensions count as rows. kind: "mean", "spectral", "channels",
    "clamp", "package.module:Class", a list of these (each a name, or a mapping with "kind" and settings) that split one
    after the other, or a conditioning. settings: of that kind; its class lists them. axis: the one a GEMM will
    contract, 0 (the rows) or 1, which decides how quantized factors are blocked. seed: int64, one element;
    None draws one from torch's generator. basis: [k, columns], what a spectral split uses in place of a sketch.

    Returns Conditioned(residual [..., columns], left [..., k], right [k, columns]), float32. With ``fold=False`` and
    quantized factors the sum is not x: what rounding took from the factors is lost. ``compensate=True`` changes nothing
    here: left is compensated for what quantizing the residual takes, where a product does that. Raises ValueError or
    TypeError.

    >>> residual, left, right = split(x, "spectral", rank=8)
    >>> residual, left, right = split(x, ["mean", {"kind": "spectral", "rank": 8}])
    """
    conditioning = make_conditioning(kind, settings)
    if x.dim() < 2:
        raise ValueError(f"x must have two dimensions or more, got {x.dim()}")
    if seed is None:
        seed = torch.randint(2**63 - 1, [1], dtype=torch.int64, device=x.device)
    residual, left, right = conditioning.split(
        as_read(conditioning, x.flatten(0, -2)), axis=axis, seed=seed, basis=basis
    )
    leading = x.shape[:-1]
    return Conditioned(residual.reshape(x.shape), left.reshape(*leading, left.shape[1]), right)


def make_conditioning(
    kind: str | Sequence[str | Mapping[str, Any]] | Conditioning, settings: Mapping[str, Any] | None = None
) -> Conditioning:
    """A conditioning from a kind and its settings, from a list of kinds, or itself. Raises ValueError."""
    given = dict(settings or {})
    if not isinstance(kind, (str, list, tuple)):
        if given:
            raise ValueError(f"settings must go with a kind's name, got {', '.join(given)} with {kind!r}")
        if not callable(getattr(kind, "split", None)):
            raise ValueError(f"kind must be a name, a list of names or a conditioning, got {kind!r}")
        return as_conditioning(kind)
    if not isinstance(kind, str):
        if given:
            raise ValueError(f"settings must stand in the entries of the list, got {', '.join(given)} beside it")
        steps = []
        for entry in kind:
            table = {"kind": entry} if isinstance(entry, str) else dict(entry)
            steps.append(make_conditioning(str(table.pop("kind", "")), table))
        return steps[0] if len(steps) == 1 else Chain(steps=tuple(steps))
    found = conditioning_class(kind)
    names = [field.name for field in fields(found)]
    for name in given:
        check_name(f"a setting of {kind}", name, names)
    return found(**given)


def _settled(step: Conditioning, name: str, default: Any) -> Any:
    """A field's default as the class itself settles it, such as a format's name turned into a full text."""
    try:
        return getattr(type(step)(**{name: default}), name)
    except (TypeError, ValueError):
        return default
