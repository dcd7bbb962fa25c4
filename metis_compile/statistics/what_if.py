"""Other formats to put the same tensor into, by name."""

from __future__ import annotations

from collections.abc import Sequence

from metis_compile.numerics import FORMATS, QuantSpec
from metis_compile.spelling import did_you_mean

__all__ = ["format_specs"]


def format_specs(names: Sequence[str]) -> dict[str, QuantSpec]:
    """Name -> spec. A name is a format's, for its first block and rounding to nearest, or the text of a QuantSpec.

    Raises ValueError for one that does not exist, TypeError for what is no list of texts.
    """
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise TypeError(f'what_if must be a list of formats, such as ("mxfp8", "nvfp4"), got {names!r}')
    return {name: _spec(name) for name in names}


def _spec(name: str) -> QuantSpec:
    if name in FORMATS:
        return QuantSpec.make(name)
    if " " in name:
        return QuantSpec.parse(name)
    raise ValueError(
        f"what_if must name formats of {', '.join(map(repr, FORMATS))}, or be full texts such as 'nvfp4 16x16 "
        f"nearest', got {name!r}{did_you_mean(name, FORMATS)}"
    )
