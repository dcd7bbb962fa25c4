"""The number formats, and the spec that says how a tensor is put into one of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from metis_compile.spelling import did_you_mean


@dataclass(frozen=True, kw_only=True)
class Element:
    """A signed minifloat with subnormals: its grid is all that rounding needs to know."""

    name: str
    bits: int
    mantissa_bits: int
    min_exponent: int  # of the smallest normal
    max: float
    dtype: torch.dtype | None  # torch's dtype of the same encoding; None for E2M1, which torch cannot cast to

    @property
    def max_exponent(self) -> int:
        """floor(log2(max)), the ``emax`` of OCP MX v1.0."""
        return int(self.max).bit_length() - 1


ELEMENTS = {
    "e2m1": Element(name="e2m1", bits=4, mantissa_bits=1, min_exponent=0, max=6.0, dtype=None),
    "e4m3": Element(name="e4m3", bits=8, mantissa_bits=3, min_exponent=-6, max=448.0, dtype=torch.float8_e4m3fn),
    "e5m2": Element(name="e5m2", bits=8, mantissa_bits=2, min_exponent=-14, max=57344.0, dtype=torch.float8_e5m2),
}

SCALE_DTYPES = {"e4m3": torch.float8_e4m3fn, "e8m0": torch.float8_e8m0fnu, "fp32": torch.float32}

# Elements that share one block scale; "tensor" and "row" take whatever is there.
BLOCK_ELEMENTS = {"1x16": 16, "16x16": 256, "1x32": 32, "1x128": 128, "128x128": 16384}


@dataclass(frozen=True, kw_only=True)
class Format:
    """A block format: what an element is, what a block scale is, which block shapes exist."""

    name: str
    element: str  # a key of ELEMENTS
    scale: str  # a key of SCALE_DTYPES
    blocks: tuple[str, ...]  # the first is the default
    tensor_scale: bool = False  # a second fp32 scale, one per tensor (nvfp4)

    @property
    def element_type(self) -> Element:
        return ELEMENTS[self.element]

    @property
    def element_max(self) -> float:
        return self.element_type.max

    @property
    def element_bits(self) -> int:
        return self.element_type.bits

    @property
    def scale_dtype(self) -> torch.dtype:
        return SCALE_DTYPES[self.scale]

    @property
    def guards(self) -> tuple[str, ...]:
        """What keeps stochastic rounding from clipping; 17/16 covers the error of an E4M3 scale only."""
        return ("round_up", "17/16", "none") if self.scale == "e4m3" else ("round_up", "none")

    @property
    def scale_modes(self) -> tuple[str, ...]:
        """How an E8M0 scale is rounded, of which one must be chosen; the first is the default."""
        return ("floor", "rceil", "even") if self.scale == "e8m0" else ()

    def optional_scale_modes(self, block: str | None) -> tuple[str, ...]:
        """How a fp32 scale may be rounded: those of rows and blocks alone, not the one of a tensor."""
        return ("power_of_two",) if self.scale == "fp32" and block not in (None, "tensor") else ()

    @property
    def roundings(self) -> tuple[str, ...]:
        """How it may be rounded; eden corrects a block by its scale, and needs one with a mantissa and few elements."""
        return ROUNDINGS if (self.element, self.scale) == ("e2m1", "e4m3") else ROUNDINGS[:2]

    def selects(self, rounding: str) -> tuple[str, ...]:
        """By what error four-over-six may choose: E2M1 under E4M3 scales only, where 1.5 scales are as fine as one."""
        if (self.element, self.scale) != ("e2m1", "e4m3") or rounding == "eden":
            return ()
        return ("expected",) if rounding == "stochastic" else ("mse", "mae")


ROUNDINGS = ("nearest", "stochastic", "eden")
SELECT_PREFIX = "4/6-"  # before the name in a spec's text: "nvfp4 1x16 nearest 4/6-mse"

FORMATS = {
    f.name: f
    for f in (
        Format(name="nvfp4", element="e2m1", scale="e4m3", blocks=("1x16", "16x16"), tensor_scale=True),
        Format(name="mxfp4", element="e2m1", scale="e8m0", blocks=("1x32",)),
        Format(name="mxfp8", element="e4m3", scale="e8m0", blocks=("1x32",)),
        Format(name="mxfp8_e5m2", element="e5m2", scale="e8m0", blocks=("1x32",)),
        Format(name="fp8", element="e4m3", scale="fp32", blocks=("tensor", "row", "1x128", "128x128")),
        Format(name="fp8_e5m2", element="e5m2", scale="fp32", blocks=("tensor", "row", "1x128", "128x128")),
    )
}


@dataclass(frozen=True, kw_only=True)
class QuantSpec:
    """How a tensor is quantized. Build one with :meth:`make`, which fills in the defaults.

    rounding
        "nearest": ties to even. "stochastic": each element up or down at random, so that its mean is kept. "eden":
        nvfp4 only; elements to nearest, and the block scale corrected for what that loses and rounded at random: next
        to a random Hadamard transform this too keeps the mean, with less noise (see numerics/eden.py).
    guard
        Only for stochastic rounding, which is biased where elements clip. "round_up": the block scale goes
        up to the next one at which nothing clips (E8M0: whatever the mode gave, up to what "rceil" gives;
        an fp32 scale needs nothing). "17/16": the scale is multiplied by that before it is rounded to E4M3.
        "none": no guard.
    scale_mode
        For E8M0 scales. "floor": 2^(floor(log2 amax) - emax), OCP MX v1.0. "rceil": amax / element_max,
        rounded up to a power of two. "even": as floor, of amax rounded to the element's mantissa bits.
        And, where it is given, for fp8 by row or block. "power_of_two": the largest one at which nothing clips.
    select
        Four-over-six, nvfp4 only: each block's largest element becomes 6 or 4, whichever gives the lower error.
        "mse": the squares of the errors, "mae": their magnitudes, both when rounding to nearest; "expected": the
        squares that stochastic rounding has on average, known before the draw (a choice made after it is biased).
    """

    format: str
    block: str
    rounding: str
    guard: str | None
    scale_mode: str | None
    select: str | None = None

    def __post_init__(self) -> None:
        _require("format", self.format, FORMATS)
        fmt = FORMATS[self.format]
        _require("block", self.block, fmt.blocks, self.format)
        _require("rounding", self.rounding, fmt.roundings, self.format)
        if self.rounding == "stochastic":
            _require("guard", self.guard, fmt.guards, f"stochastic {self.format}")
        elif self.guard is not None:
            raise ValueError(f"guard must be None when rounding is {self.rounding!r}, got {self.guard!r}")
        if fmt.scale_modes:
            _require("scale_mode", self.scale_mode, fmt.scale_modes, self.format)
        elif self.scale_mode is not None and self.scale_mode not in fmt.optional_scale_modes(self.block):
            raise ValueError(
                f"scale_mode must be None for {self.format}, whose scales are {fmt.scale}, "
                f"got {self.scale_mode!r}; E8M0 scales (mxfp4, mxfp8, mxfp8_e5m2) have modes, "
                "and fp8 and fp8_e5m2 by row or block have 'power_of_two'"
            )
        if self.select is not None and self.rounding == "eden":
            raise ValueError(f"select must be None when rounding is 'eden', got {self.select!r}; eden has no 4/6")
        if self.select is not None:
            selects = fmt.selects(self.rounding)
            if not selects:
                raise ValueError(f"select must be None for {self.format}, got {self.select!r}; nvfp4 alone has 4/6")
            _require("select", self.select, selects, f"{self.rounding} {self.format}")

    @classmethod
    def make(
        cls,
        format: str,
        block: str | None = None,
        rounding: str = "nearest",
        guard: str | None = None,
        scale_mode: str | None = None,
        select: str | None = None,
    ) -> QuantSpec:
        """Fill in what is None: the format's first block, "round_up" if stochastic, "floor" for E8M0, no 4/6.

        Raises ValueError that names the field, the value, what is allowed and the nearest valid name.
        """
        _require("format", format, FORMATS)
        fmt = FORMATS[format]
        _require("rounding", rounding, fmt.roundings, format)
        if guard is None and rounding == "stochastic":
            guard = fmt.guards[0]
        elif guard == "none" and rounding != "stochastic":
            guard = None
        if scale_mode is None and fmt.scale_modes:
            scale_mode = fmt.scale_modes[0]
        return cls(
            format=format,
            block=fmt.blocks[0] if block is None else block,
            rounding=rounding,
            guard=guard,
            scale_mode=scale_mode,
            select=select,
        )

    @classmethod
    def parse(cls, text: str) -> QuantSpec:
        """The inverse of ``str(spec)``. Raises ValueError when the text is not that of a spec."""
        words = text.split()
        if len(words) < 3:
            raise ValueError(
                f"a spec must read 'format block rounding [guard] [scale_mode] [4/6-...]', such as "
                f"'nvfp4 1x16 nearest', got {text!r}"
            )
        format, block, rounding = words[:3]
        rest = list(words[3:])  # Dynamo takes `*rest`, in torch 2.11, and a slice for a tuple
        select = rest.pop().removeprefix(SELECT_PREFIX) if rest and rest[-1].startswith(SELECT_PREFIX) else None
        guard = rest.pop(0) if rounding == "stochastic" and rest else None
        scale_mode = rest.pop(0) if rest else None
        if rest:
            raise ValueError(f"a spec must end after its scale mode, got also {' '.join(rest)!r} in {text!r}")
        return cls(format=format, block=block, rounding=rounding, guard=guard, scale_mode=scale_mode, select=select)

    def __str__(self) -> str:
        select = None if self.select is None else SELECT_PREFIX + self.select
        words = (self.format, self.block, self.rounding, self.guard, self.scale_mode, select)
        return " ".join(word for word in words if word is not None)

    @property
    def fmt(self) -> Format:
        return FORMATS[self.format]

    @property
    def element(self) -> Element:
        return self.fmt.element_type

    @property
    def stochastic(self) -> bool:
        """Whether elements are rounded at random."""
        return self.rounding == "stochastic"

    @property
    def needs_noise(self) -> bool:
        """Whether anything is rounded at random: the elements, or ("eden") the block scales."""
        return self.rounding != "nearest"

    @property
    def largest_scale(self) -> float:
        """Of an nvfp4 block that holds the tensor's amax: 448, E4M3's largest, or with room for a larger scale."""
        return 448.0 if self.select is None and self.rounding != "eden" else 256.0

    @property
    def orientation_free(self) -> bool:
        """Whether the values do not depend on the axis (the packing of codes still does)."""
        return self.block in ("tensor", "16x16", "128x128")

    @property
    def bits_per_element(self) -> float:
        """Element plus its share of the block scale; scales per row and per tensor count as nothing."""
        scale_bits = 8 * self.fmt.scale_dtype.itemsize
        share = BLOCK_ELEMENTS.get(self.block)
        return self.fmt.element_bits + (scale_bits / share if share else 0.0)


def _require(field: str, value: object, allowed: Iterable[str], of: str | None = None) -> None:
    names = list(allowed)
    if value in names:
        return
    hint = did_you_mean(str(value), names, cutoff=0.4)
    raise ValueError(
        f"{field}{f' of {of}' if of else ''} must be one of {', '.join(map(repr, names))}, got {value!r}{hint}"
    )
