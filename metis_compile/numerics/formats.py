"""The number formats, and the spec that says how a tensor is put into one of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from metis_compile.numerics.number_types import ELEMENTS, SCALES, Element, ScaleType, require

# Of each guard, what scales are multiplied by before they are rounded.
GUARD_FACTORS = {"round_up": 1.0, "17/16": 17 / 16, "none": 1.0}


def block_shape(block: str) -> tuple[int, int] | None:
    """(rows, elements along the axis) that share a block scale; None for "row" and "tensor", which take what is there.

    Raises ValueError for other blocks than 1xN and NxN, N a power of two from 16 to 128.
    """
    if block in ("row", "tensor"):
        return None
    rows, _, columns = block.partition("x")
    sizes = [str(2**k) for k in range(4, 8)]
    if columns not in sizes or rows not in ("1", columns):
        raise ValueError(f"block must be 'row', 'tensor', or 1xN or NxN for N one of {', '.join(sizes)}, got {block!r}")
    return int(rows), int(columns)


def tiled_blocks() -> list[str]:
    """The blocks of all formats that have a fixed size."""
    return list(dict.fromkeys(b for f in FORMATS.values() for b in f.blocks if block_shape(b) is not None))


@dataclass(frozen=True, kw_only=True)
class Format:
    """A block format: what an element is, what a block scale is, which block shapes exist.

    Raises ValueError for an element, a scale or a block that does not exist, or a tensor scale that does not go with
    the scale.
    """

    name: str
    element: str  # a key of ELEMENTS
    scale: str  # a key of SCALES
    blocks: tuple[str, ...]  # the first is the default
    tensor_scale: bool = False  # a second fp32 scale, one per tensor (nvfp4)
    scale_target: float | None = None  # the scale of the block with the tensor's amax; None: the largest there is

    def __post_init__(self) -> None:
        require("element", self.element, ELEMENTS, f"format {self.name!r}")
        require("scale", self.scale, SCALES, f"format {self.name!r}")
        for block in self.blocks:
            if block_shape(block) is None and self.scale_type.kind != "float32":
                raise ValueError(
                    f"blocks of format {self.name!r} must have a size under {self.scale} scales: {block!r}"
                )
        if self.tensor_scale != (self.scale_type.kind == "minifloat"):
            raise ValueError(
                f"tensor_scale of format {self.name!r} must be True for minifloat scales and False for others, "
                f"got {self.tensor_scale} for {self.scale!r}"
            )
        if self.scale_target is not None and not (self.tensor_scale and 0 < self.scale_target <= self.largest_scale):
            raise ValueError(
                f"scale_target of format {self.name!r} must be None without a tensor scale, and at most the largest "
                f"{self.scale} scale, got {self.scale_target}"
            )

    @property
    def largest_scale(self) -> float:
        """The largest minifloat scale. Raises ValueError for other scales."""
        return self.scale_type.minifloat.max

    @property
    def element_type(self) -> Element:
        return ELEMENTS[self.element]

    @property
    def element_max(self) -> float:
        return self.element_type.max

    @property
    def scale_type(self) -> ScaleType:
        return SCALES[self.scale]

    @property
    def scale_dtype(self) -> torch.dtype:
        return self.scale_type.dtype

    @property
    def has_four_over_six(self) -> bool:
        """Whether elements are E2M1, which has nothing between 4 and 6, under scales of which 1.5 is as fine as one."""
        return self.element == "e2m1" and self.scale_type.kind == "minifloat"

    @property
    def guards(self) -> tuple[str, ...]:
        """What keeps stochastic rounding from clipping; 17/16 covers the error of three bits of mantissa."""
        grid = self.scale_type.grid
        return ("round_up", "17/16", "none") if grid is not None and grid.mantissa_bits >= 3 else ("round_up", "none")

    @property
    def scale_modes(self) -> tuple[str, ...]:
        """How an E8M0 scale is rounded, of which one must be chosen; the first is the default."""
        return ("floor", "rceil", "even") if self.scale_type.kind == "exponent" else ()

    def optional_scale_modes(self, block: str | None) -> tuple[str, ...]:
        """How a fp32 scale may be rounded: those of rows and blocks alone, not the one of a tensor.

        Of elements up to 4 or more: those of the largest fp32 numbers are else scaled by less than the least normal.
        """
        has_powers = self.scale_type.kind == "float32" and self.element_max >= 4
        return ("power_of_two",) if has_powers and block not in (None, "tensor") else ()

    @property
    def roundings(self) -> tuple[str, ...]:
        """How it may be rounded; eden corrects a block by its scale, and needs one with a mantissa and few elements."""
        return ROUNDINGS if self.has_four_over_six else ROUNDINGS[:2]

    def selects(self, rounding: str) -> tuple[str, ...]:
        """By what error four-over-six may choose."""
        if not self.has_four_over_six or rounding == "eden":
            return ()
        return ("expected",) if rounding == "stochastic" else ("mse", "mae")


ROUNDINGS = ("nearest", "stochastic", "eden")
SELECT_PREFIX = "4/6-"  # before the name in a spec's text: "nvfp4 1x16 nearest 4/6-mse"

FORMATS = {
    f.name: f
    for f in (
        Format(name="nvfp4", element="e2m1", scale="e4m3", blocks=("1x16", "16x16"), tensor_scale=True),
        Format(
            name="nvfp4_ue5m3",
            element="e2m1",
            scale="ue5m3",
            blocks=("1x16", "16x16"),
            tensor_scale=True,
            scale_target=448.0,
        ),
        Format(name="fp4", element="e2m1", scale="fp32", blocks=("row", "1x128", "128x128")),
        Format(name="ufp4", element="e1m2", scale="fp32", blocks=("1x16",)),
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
        require("format", self.format, FORMATS)
        fmt = FORMATS[self.format]
        require("block", self.block, fmt.blocks, self.format)
        require("rounding", self.rounding, fmt.roundings, self.format)
        if self.rounding == "stochastic":
            require("guard", self.guard, fmt.guards, f"stochastic {self.format}")
        elif self.guard is not None:
            raise ValueError(f"guard must be None when rounding is {self.rounding!r}, got {self.guard!r}")
        if fmt.scale_modes:
            require("scale_mode", self.scale_mode, fmt.scale_modes, self.format)
        elif self.scale_mode is not None and self.scale_mode not in fmt.optional_scale_modes(self.block):
            raise ValueError(
                f"scale_mode must be None for {self.format}, whose scales are {fmt.scale}, "
                f"got {self.scale_mode!r}; E8M0 scales ({', '.join(_formats_with('exponent'))}) have modes, "
                f"and {' and '.join(_with_powers_of_two())} by row or block have 'power_of_two'"
            )
        if self.select is not None and self.rounding == "eden":
            raise ValueError(f"select must be None when rounding is 'eden', got {self.select!r}; eden has no 4/6")
        if self.select is not None:
            selects = fmt.selects(self.rounding)
            if not selects:
                raise ValueError(
                    f"select must be None for {self.format}, got {self.select!r}; "
                    f"{', '.join(f.name for f in FORMATS.values() if f.has_four_over_six)} alone has 4/6"
                )
            require("select", self.select, selects, f"{self.rounding} {self.format}")

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
        require("format", format, FORMATS)
        fmt = FORMATS[format]
        require("rounding", rounding, fmt.roundings, format)
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
        """Of the block that holds the tensor's amax: the format's target (448 in nvfp4), or with room above (256)."""
        target = self.fmt.scale_target or self.fmt.largest_scale
        return target if self.select is None and self.rounding != "eden" else 2.0 ** (math.frexp(target)[1] - 1)

    @property
    def tensor_target(self) -> float | None:
        """What the largest magnitude of a tensor is scaled to, None where there is no scale of the whole tensor."""
        if self.fmt.tensor_scale:
            return self.largest_scale * self.element.max
        return self.element.max if self.block == "tensor" else None

    @property
    def holds_amax(self) -> bool:
        """Whether the scale of the tensor may be made of another amax than the tensor's own: see `held_amax`."""
        return self.tensor_target is not None and self.select is None

    @property
    def why_not_held(self) -> str:
        """The reason where it may not."""
        if self.tensor_target is None:
            return "which has no scale of the whole tensor"
        return "whose 4/6 compares errors that are bounded under the tensor's own amax alone"

    @property
    def guard_factor(self) -> float:
        """What block scales are multiplied by before they are rounded."""
        return 1.0 if self.guard is None else GUARD_FACTORS[self.guard]

    @property
    def block_shape(self) -> tuple[int, int] | None:
        """(rows, elements along the axis) that share a block scale, None for "row" and "tensor"."""
        return block_shape(self.block)

    @property
    def is_exact(self) -> bool:
        """Whether bfloat16, whose significand has 8 bits, holds an element times its block scale."""
        scale = self.fmt.scale_type
        if scale.kind == "float32":
            return False
        return self.element.mantissa_bits + 1 + (scale.grid.mantissa_bits + 1 if scale.grid else 0) <= 8

    @property
    def orientation_free(self) -> bool:
        """Whether the values do not depend on the axis (the packing of codes still does)."""
        return self.block == "tensor" or (self.block_shape is not None and self.block_shape[0] > 1)

    @property
    def bits_per_element(self) -> float:
        """Element plus its share of the block scale, as stored; scales per row and per tensor count as nothing."""
        scale_bits = 8 * self.fmt.scale_dtype.itemsize
        share = math.prod(self.block_shape) if self.block_shape else None
        return 8 / self.element.codes_per_byte + (scale_bits / share if share else 0.0)


def _with_powers_of_two() -> list[str]:
    return [f.name for f in FORMATS.values() if any(map(f.optional_scale_modes, f.blocks))]


def _formats_with(scale_kind: str) -> list[str]:
    return [f.name for f in FORMATS.values() if f.scale_type.kind == scale_kind]
