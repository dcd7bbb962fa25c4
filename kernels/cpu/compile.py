"""Compile the C++ kernels of one `QuantSpec` with Inductor's C++ toolchain, on first use, cached on disk.

A library serves one spec and one input dtype: a second or two of compiling, where all combinations would take minutes.
"""

from __future__ import annotations

import ctypes
import re
from functools import cache
from pathlib import Path
from typing import Any

import torch

from metis_compile.compat import CppCodeCache, compile_phase
from metis_compile.kernels.parts import e8m0_carry, sum_anchor
from metis_compile.numerics import QuantSpec
from metis_compile.numerics.number_types import Element

FOLDER = Path(__file__).parent
INPUTS = {torch.float32: "float", torch.bfloat16: "Bfloat16", torch.float16: "Float16"}
_I64, _INT, _PTR = ctypes.c_int64, ctypes.c_int, ctypes.c_void_p
_SIGNATURES = {
    "tensor_scale": [_PTR, _I64, ctypes.c_float, _PTR, _PTR, _INT],
    "quantize": [_PTR, _I64, _I64, _I64, _INT, _INT, _PTR, _PTR, _PTR, _PTR, _PTR, _PTR, _I64, _INT],
    "thin_sum": [_PTR, _PTR, _I64, _I64, _PTR, _PTR, _PTR, _I64, _I64, _I64, _I64, ctypes.c_float, _INT, _INT],
    "decode": [_PTR, _PTR, _PTR, _I64, _I64, _I64, _INT, _INT, _PTR, _INT],
}


class KernelBuildError(RuntimeError):
    """The C++ compiler failed. The message holds what it printed."""


@cache
def load(kernel: str, spec: QuantSpec | None, dtype: torch.dtype) -> Any:
    """The C function of `kernel` for this spec and input dtype, as ctypes calls it.

    kernel: "quantize", "decode", or "tensor_scale" and "thin_sum", which have no spec.

    Raises KernelBuildError, with the compiler's output, where it can't be built.
    """
    try:
        with compile_phase("metis_cpu_kernels"):
            library = CppCodeCache.load(source(kernel, spec, dtype))
    except Exception as error:
        output = getattr(error, "output", "")
        raise KernelBuildError(
            f"metis: can't build the CPU kernel {kernel} ({spec}, {dtype}): {type(error).__name__}: {error}\n"
            f"{output}\n"
            'A C++20 compiler is needed (set CXX to choose one); options={"cpu_kernels": False} does without.'
        ) from error
    function = getattr(library, f"metis_{kernel}")
    function.argtypes = _SIGNATURES[kernel]
    function.restype = None
    return function


def source(kernel: str, spec: QuantSpec | None, dtype: torch.dtype) -> str:
    """The C++ text that is compiled: the spec as macros, then the file with its headers in place."""
    if kernel == "decode" and spec is not None:  # one library, however the parts were made
        spec = QuantSpec.make(spec.format, spec.block)
    constants = {"INPUT": INPUTS[dtype], **(_constants(spec) if spec is not None else {})}
    macros = "".join(f"#define METIS_{name} {value}\n" for name, value in constants.items())
    return f"// {spec}, {dtype}\n{macros}{inlined(f'{kernel}.cpp')}"


def _constants(spec: QuantSpec) -> dict[str, Any]:
    element, scale = spec.element, spec.fmt.scale_type
    rows, size = spec.block_shape or (1, 1)
    return {
        "ELEMENT": _minifloat(element),
        "CODES_PER_BYTE": element.codes_per_byte,
        "ELEMENT_MAX": f"{element.max}f",
        "INVERSE_ELEMENT_MAX": f"(float)({1 / element.max!r})",
        "MAX_EXPONENT": element.max_exponent,
        "SCALE": scale.kind,
        "SCALE_GRID": _minifloat(scale.grid or element),  # of no meaning for scales that are not minifloats
        "SCALE_MAX": f"{(scale.grid or element).max}f",
        "BLOCKS": spec.block if spec.block_shape is None else "square" if rows > 1 else "line",
        "BLOCK": size,
        "ROUNDING": spec.rounding,
        "ROUND_UP": int(spec.guard == "round_up"),
        "GUARD_FACTOR": f"{spec.guard_factor!r}f",
        "SELECT": spec.select or "none",
        "SUM_ANCHOR": f"{sum_anchor(spec)!r}f",
        "E8M0_CARRY": e8m0_carry(spec),
        "POWER_OF_TWO": int(spec.scale_mode == "power_of_two"),
    }


def _minifloat(element: Element) -> str:
    """The arguments of the C++ template: -1 stands for a code that there is not."""
    infinity, nan = (-1 if code is None else code for code in (element.infinity, element.nan))
    numbers = (element.bits, int(element.signed), element.mantissa_bits, element.min_exponent, element.largest_code)
    return f"Minifloat<{', '.join(map(str, (*numbers, infinity, nan)))}>"


def inlined(name: str, seen: set[str] | None = None) -> str:
    """The file of this name with each of our own headers put where it is first included."""
    seen = set() if seen is None else seen
    seen.add(name)

    def header(match: re.Match[str]) -> str:
        return "" if match[1] in seen else inlined(match[1], seen)

    text = (FOLDER / name).read_text().replace("#pragma once\n", "")
    return re.sub(r'^#include "([\w.]+)"\n', header, text, flags=re.MULTILINE)
