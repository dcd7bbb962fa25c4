"""What elements and block scales are: the numbers that plain torch, C++ and Triton take their constants from."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from metis_compile.spelling import did_you_mean


def require(field: str, value: object, allowed: Iterable[str], of: str | None = None) -> None:
    """Raises ValueError for a name that is not allowed: it says which are, and the nearest."""
    names = list(allowed)
    if value in names:
        return
    hint = did_you_mean(str(value), names, cutoff=0.4)
    raise ValueError(
        f"{field}{f' of {of}' if of else ''} must be one of {', '.join(map(repr, names))}, got {value!r}{hint}"
    )


@dataclass(frozen=True, kw_only=True)
class Element:
    """A minifloat with subnormals: all that rounding, encoding and decoding need to know, in every language.

    A code is, from the highest bit down: the sign, the exponent, the mantissa. Raises ValueError for bits that do not
    add up, and for a largest value that is not on the grid.
    """

    name: str
    bits: int
    exponent_bits: int
    mantissa_bits: int
    min_exponent: int  # of the smallest normal
    max: float
    signed: bool = True
    infinity: int | None = None  # its code; codes above it are NaN
    nan: int | None = None  # the code that a NaN gets, whatever its sign; None where there is none, and it gets 0
    dtype: torch.dtype | None = None  # torch's dtype of the same encoding, if there is one

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8 or self.bits != self.signed + self.exponent_bits + self.mantissa_bits:
            raise ValueError(
                f"bits of {self.name!r} must be at most 8, and those of its sign ({int(self.signed)}), exponent "
                f"({self.exponent_bits}) and mantissa ({self.mantissa_bits}), got {self.bits}"
            )
        steps = math.ldexp(self.max, self.mantissa_bits - self.max_exponent)
        if steps != int(steps) or not 0 < self.largest_code < 2**self.magnitude_bits:
            raise ValueError(f"max of {self.name!r} must have a code of {self.magnitude_bits} bits, got {self.max}")

    @property
    def max_exponent(self) -> int:
        """floor(log2(max)), the ``emax`` of OCP MX v1.0."""
        return math.frexp(self.max)[1] - 1

    @property
    def least(self) -> float:
        """The smallest magnitude that is not 0."""
        return math.ldexp(1.0, self.min_exponent - self.mantissa_bits)

    @property
    def magnitude_bits(self) -> int:
        """Those of a code without its sign."""
        return self.bits - self.signed

    @property
    def largest_code(self) -> int:
        """That of `max`: above it are infinity and NaN alone, if anything."""
        steps = int(math.ldexp(self.max, self.mantissa_bits - self.max_exponent))
        return ((self.max_exponent - self.min_exponent) << self.mantissa_bits) + steps

    @property
    def codes_per_byte(self) -> int:
        """2 for 4 bits, lower index in the low nibble. Others have a byte each, its upper bits 0 where not needed."""
        return 2 if self.bits == 4 else 1


ELEMENTS = {
    e.name: e
    for e in (
        Element(name="e2m1", bits=4, exponent_bits=2, mantissa_bits=1, min_exponent=0, max=6.0),
        # 0 .5 1 1.5 2 2.5 3 3.5: evenly spaced, subnormals and the one binade of normals alike.
        Element(name="e1m2", bits=4, exponent_bits=1, mantissa_bits=2, min_exponent=1, max=3.5),
        Element(
            name="e4m3",
            bits=8,
            exponent_bits=4,
            mantissa_bits=3,
            min_exponent=-6,
            max=448.0,
            nan=0x7F,
            dtype=torch.float8_e4m3fn,
        ),
        Element(
            name="e5m2",
            bits=8,
            exponent_bits=5,
            mantissa_bits=2,
            min_exponent=-14,
            max=57344.0,
            infinity=0x7C,
            nan=0x7F,
            dtype=torch.float8_e5m2,
        ),
    )
}


@dataclass(frozen=True, kw_only=True)
class ScaleType:
    """What a block scale is stored as. Raises ValueError for a kind that does not exist, or a grid too many or few.

    kind
        "minifloat": rounded to the grid of `grid`, its sign bit 0 if it has one; a float32 scale of the whole tensor
        goes with it. "exponent": a power of two, by its biased exponent (E8M0). "float32": not rounded.
    """

    name: str
    kind: str
    dtype: torch.dtype  # uint8 where torch has none of the encoding
    grid: Element | None = None

    def __post_init__(self) -> None:
        require("kind", self.kind, SCALE_KINDS, f"scale {self.name!r}")
        if (self.grid is None) == (self.kind == "minifloat"):
            raise ValueError(f"grid of scale {self.name!r} must be given for 'minifloat' alone, got {self.grid}")

    @property
    def minifloat(self) -> Element:
        """The grid. Raises ValueError for a kind that has none."""
        if self.kind != "minifloat" or self.grid is None:
            raise ValueError(f"scale must be a minifloat, got {self.name!r} of kind {self.kind!r}")
        return self.grid


# No sign; infinity and NaN have the largest exponent, as in IEEE 754.
_UE5M3 = Element(
    name="ue5m3",
    bits=8,
    exponent_bits=5,
    mantissa_bits=3,
    min_exponent=-14,
    max=61440.0,
    signed=False,
    infinity=0xF8,
    nan=0xFF,
)

SCALE_KINDS = ("minifloat", "exponent", "float32")

SCALES = {
    "e4m3": ScaleType(name="e4m3", kind="minifloat", dtype=torch.float8_e4m3fn, grid=ELEMENTS["e4m3"]),
    "ue5m3": ScaleType(name="ue5m3", kind="minifloat", dtype=torch.uint8, grid=_UE5M3),
    "e8m0": ScaleType(name="e8m0", kind="exponent", dtype=torch.float8_e8m0fnu),
    "fp32": ScaleType(name="fp32", kind="float32", dtype=torch.float32),
}
