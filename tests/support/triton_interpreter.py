"""What Triton's interpreter lacks, and what it does otherwise than a GPU, so that kernels can be tested bit by bit.

Arithmetic, sums and products of matrices of bfloat16; casts to bfloat16 and FP8, which round to nearest, ties to even,
and saturate in FP8; minima and maxima, which prefer a number to a NaN; fma, which rounds once; `dot_scaled`; libdevice.
And a check: what a kernel loads and stores must lie inside of the tensors that it was given.

It remains more lenient than the compiler: see `cross_compile`. What GPUs do less exactly (division and square roots
other than the `_rn` ones, tf32, products contracted into an fma) is exact here.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
import torch
import triton
import triton.language as tl
from triton._C.libtriton import ir
from triton.language.extra import libdevice
from triton.language.extra.cuda import libdevice as cuda_libdevice
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

STORED_AS_BITS: dict[Any, Any] = {
    tl.bfloat16: ml_dtypes.bfloat16,
    tl.float8e4nv: ml_dtypes.float8_e4m3fn,
    tl.float8e5: ml_dtypes.float8_e5m2,
}
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], dtype=np.float32)


@cache
def install() -> None:
    """Changes the interpreter of this process, which TRITON_INTERPRET=1 must have started with."""
    if not triton.knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET must be 1 before triton is imported")
    interpreter.interpreter_builder = Builder()
    interpreter.TritonSemantic = Semantic  # what triton 3.6 makes for each call
    interpreter.interpreter_semantic = Semantic(interpreter.interpreter_builder)
    interpreter.GridExecutor.__call__ = _within_tensors(interpreter.GridExecutor.__call__)
    interpreter.ReduceScanOpInterface.check_tensor = _refusing_bits(interpreter.ReduceScanOpInterface.check_tensor)
    interpreter.ReduceOps.generic_reduce = _reduce_by_halves(interpreter.ReduceOps.generic_reduce)
    _bind_libdevice()


def values_of(handle: TensorHandle) -> np.ndarray:
    """What a handle holds, as numpy computes with it: float32 for the types that the interpreter keeps as bits."""
    held = STORED_AS_BITS.get(handle.dtype.scalar)
    if held is None:
        return handle.data
    return np.ascontiguousarray(handle.data).view(held).astype(np.float32)


def handle_of(values: np.ndarray, dtype: Any) -> TensorHandle:
    """Values rounded to a type of Triton's."""
    dtype = dtype.scalar
    held = STORED_AS_BITS.get(dtype)
    with np.errstate(all="ignore"):
        if held is None:
            return TensorHandle(values.astype(interpreter._get_np_dtype(dtype)), dtype)
        values = values.astype(np.float32)
        if dtype != tl.bfloat16:
            largest = np.float32(ml_dtypes.finfo(held).max)
            values = np.where(np.isnan(values), values, np.clip(values, -largest, largest))
        return TensorHandle(values.astype(held).view(interpreter._get_np_dtype(dtype)), dtype)


def _is_held_as_bits(handle: TensorHandle) -> bool:
    return handle.dtype.scalar in STORED_AS_BITS


class Builder(InterpreterBuilder):
    """What builds a kernel's results in the interpreter, corrected."""

    def __init__(self) -> None:
        super().__init__()
        self.extents: list[tuple[np.uint64, np.uint64]] = []  # of the running kernel's tensors: first byte, end

    def get_bf16(self, value: float) -> TensorHandle:
        return handle_of(np.array([value], dtype=np.float32), tl.bfloat16)

    def binary_op(self, lhs: TensorHandle, rhs: TensorHandle, op: Any) -> TensorHandle:
        with np.errstate(all="ignore"):
            if not _is_held_as_bits(lhs) or op in (np.bitwise_and, np.bitwise_or, np.bitwise_xor):
                return super().binary_op(lhs, rhs, op)
            result = op(values_of(lhs), values_of(rhs))
        return TensorHandle(result, lhs.dtype.scalar) if result.dtype == bool else handle_of(result, lhs.dtype)

    def unary_op(self, arg: TensorHandle, op: Any) -> TensorHandle:
        with np.errstate(all="ignore"):
            return handle_of(op(values_of(arg)), arg.dtype)

    def create_minnumf(self, lhs: TensorHandle, rhs: TensorHandle) -> TensorHandle:
        return self.binary_op(lhs, rhs, np.fmin)

    def create_maxnumf(self, lhs: TensorHandle, rhs: TensorHandle) -> TensorHandle:
        return self.binary_op(lhs, rhs, np.fmax)

    def create_clampf(self, arg: TensorHandle, lo: TensorHandle, hi: TensorHandle, propagate: Any) -> TensorHandle:
        smaller, larger = (np.minimum, np.maximum) if propagate == ir.PROPAGATE_NAN.ALL else (np.fmin, np.fmax)
        return self.binary_op(self.binary_op(arg, lo, larger), hi, smaller)

    def create_fma(self, x: TensorHandle, y: TensorHandle, z: TensorHandle) -> TensorHandle:
        wide = [values_of(t).astype(np.longdouble) for t in (x, y, z)]
        with np.errstate(all="ignore"):
            return handle_of(wide[0] * wide[1] + wide[2], z.dtype)

    def cast_impl(self, src: TensorHandle, dst_type: Any) -> TensorHandle:
        return handle_of(values_of(src), dst_type)

    def create_fp_to_fp(self, src: TensorHandle, dst_type: Any, rounding_mode: Any) -> TensorHandle:
        if rounding_mode not in (None, ir.ROUNDING_MODE.RTNE):
            raise NotImplementedError(f"the interpreter casts to nearest even only, got {rounding_mode}")
        return handle_of(values_of(src), dst_type)

    def create_dot(
        self, a: TensorHandle, b: TensorHandle, d: TensorHandle, precision: Any, imprecise: Any
    ) -> TensorHandle:
        with np.errstate(all="ignore"):
            product = np.matmul(values_of(a), values_of(b), dtype=d.data.dtype)
            return handle_of(product + d.data, d.dtype)

    def create_dot_scaled(
        self,
        a: TensorHandle,
        a_scale: TensorHandle | None,
        a_format: Any,
        b: TensorHandle,
        b_scale: TensorHandle | None,
        b_format: Any,
        fast_math: bool,
        a_k_pack: bool,
        b_k_pack: bool,
        acc: TensorHandle,
    ) -> TensorHandle:
        left = _scaled(a, a_scale, a_format, -1 if a_k_pack else -2)
        right = _scaled(_transposed(b), b_scale, b_format, -1 if b_k_pack else -2)
        return handle_of(np.matmul(left, right.swapaxes(-1, -2)) + acc.data, acc.dtype)

    def create_extern_elementwise(
        self, library: str, path: str, symbol: str, args: list[TensorHandle], result: Any, pure: bool
    ) -> TensorHandle:
        name = re.sub(r"(?<=isinf|isnan)d$|(?<=signbit)d$", "", symbol.removeprefix("__nv_"))
        function = _LIBDEVICE.get(name) or _LIBDEVICE.get(name.removesuffix("f"))
        if function is None:
            raise NotImplementedError(f"the interpreter of the tests knows no {symbol}")
        given = [torch.from_numpy(np.ascontiguousarray(values_of(a))) for a in args]
        return handle_of(function(*given).numpy(), result)

    def create_masked_load(self, ptrs: TensorHandle, mask: TensorHandle, *args: Any) -> TensorHandle:
        self._check(ptrs, mask, "loads from")
        return super().create_masked_load(ptrs, mask, *args)

    def create_masked_store(self, ptrs: TensorHandle, value: TensorHandle, mask: TensorHandle, *args: Any) -> None:
        self._check(ptrs, mask, "stores to")
        super().create_masked_store(ptrs, value, mask, *args)

    def create_atomic_rmw(
        self, op: Any, ptrs: TensorHandle, value: TensorHandle, mask: TensorHandle, *args: Any
    ) -> TensorHandle:
        self._check(ptrs, mask, "updates")
        return super().create_atomic_rmw(op, ptrs, value, mask, *args)

    def _check(self, ptrs: TensorHandle, mask: TensorHandle, what: str) -> None:
        size = np.uint64(max(1, ptrs.get_element_ty().primitive_bitwidth // 8))
        used = np.broadcast_to(mask.data, np.broadcast_shapes(ptrs.data.shape, mask.data.shape))
        addresses = np.broadcast_to(ptrs.data, used.shape)[used].astype(np.uint64)
        inside = np.zeros(addresses.shape, dtype=bool)
        for first, end in self.extents:
            inside |= (addresses >= first) & (addresses + size <= end)
        if not inside.all():
            raise IndexError(f"the kernel {what} {(~inside).sum()} addresses outside of its tensors")


class Semantic(TritonSemantic):
    """`dot_scaled` of formats that are named in place: the compiler wraps constants, the interpreter does not."""

    def dot_scaled(self, lhs: Any, lhs_scale: Any, lhs_format: Any, rhs: Any, rhs_scale: Any, *rest: Any) -> Any:
        rhs_format, *others = rest
        formats = [tl.constexpr(f) if isinstance(f, str) else f for f in (lhs_format, rhs_format)]
        return super().dot_scaled(lhs, lhs_scale, formats[0], rhs, rhs_scale, formats[1], *others)


def _scaled(codes: TensorHandle, scale: TensorHandle | None, format: Any, packed: int) -> np.ndarray:
    """An operand with the contracted axis last, as float32. packed: the axis with two E2M1 to a byte."""
    if format == ir.ScaleDotElemTypeTY.E2M1:
        pairs = np.stack([E2M1[codes.data & 15], E2M1[codes.data >> 4]], packed % codes.data.ndim + 1)
        values = pairs.reshape([-1 if i == packed % codes.data.ndim else n for i, n in enumerate(codes.data.shape)])
    else:
        values = values_of(codes).astype(np.float32)
    if scale is None:
        return values
    if scale.dtype.scalar == tl.float8e4nv:
        factors = values_of(scale)
    else:
        factors = scale.data.view(np.uint8).view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    return values * factors.repeat(values.shape[-1] // factors.shape[-1], -1)


def _transposed(handle: TensorHandle) -> TensorHandle:
    return TensorHandle(handle.data.swapaxes(-1, -2), handle.dtype.scalar)


_AS_TORCH = """
acos acosh asin asinh atan atan2 atanh ceil copysign cos cosh erf erfc erfinv exp exp2 expm1 floor fmod hypot isinf
isnan ldexp lgamma log log10 log1p log2 nextafter pow rsqrt signbit sin sinh sqrt tan tanh trunc
"""
_LIBDEVICE: dict[str, Any] = {
    **{name: getattr(torch, name) for name in re.findall(r"\w+", _AS_TORCH)},
    "fabs": torch.abs,
    "fma": lambda x, y, z: torch.from_numpy(
        (x.numpy().astype(np.longdouble) * y.numpy() + z.numpy()).astype(z.numpy().dtype)
    ),
    "nearbyint": torch.round,
    "rint": torch.round,
    "llrint": lambda x: torch.round(x).to(torch.int64),
    "ilogb": lambda x: torch.frexp(x).exponent - 1,
    "fdiv_rn": torch.div,
    "frcp_rn": torch.reciprocal,
    "fsqrt_rn": torch.sqrt,
    "fmul_rn": torch.mul,
    "fadd_rn": torch.add,
    "fsub_rn": torch.sub,
}


def _bind_libdevice() -> None:
    """Fills the stubs of `triton.language.extra.libdevice` with CUDA's functions, as compiling does."""
    for name, function in list(vars(cuda_libdevice).items()):
        if tl.core.is_builtin(function):

            def bound(*args: Any, _function: Any = function, _semantic: Any = None, **kwargs: Any) -> Any:
                return _function(*args, **kwargs, _semantic=interpreter.interpreter_semantic)

            setattr(libdevice, name, bound)
            setattr(cuda_libdevice, name, bound)


def _within_tensors(call: Any) -> Any:
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        tensors = [t for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor)]
        storages = [t.untyped_storage() for t in tensors]
        interpreter.interpreter_builder.extents = [
            (np.uint64(s.data_ptr()), np.uint64(s.data_ptr() + s.nbytes())) for s in storages
        ]
        call(self, *args, **kwargs)

    return checked


def _reduce_by_halves(by_elements: Any) -> Any:
    """A reduction by a function of one's own: called for halves of what is left, where Triton does for an element."""

    def reduce(self: Any, given: Any) -> Any:
        if len(given) != 1 or self.axis is None:
            return by_elements(self, given)
        left, dtype = np.moveaxis(given[0].handle.data, self.axis, 0), given[0].dtype
        while len(left) > 1:
            half = len(left) // 2
            pairs = (self.to_tensor(part, dtype) for part in (left[:half], left[half : 2 * half]))
            left = np.concatenate([self.combine_fn.fn(*pairs).handle.data, left[2 * half :]])
        return [self.to_tensor(np.expand_dims(left[0], self.axis) if self.keep_dims else left[0], dtype)]

    return reduce


def _refusing_bits(check: Any) -> Any:
    def refusing(self: Any, given: Any) -> None:
        for arg in given:
            if isinstance(arg, tl.core.tensor) and arg.dtype in STORED_AS_BITS:
                raise NotImplementedError(f"the interpreter reduces no {arg.dtype}: cast to float32 first")
        check(self, given)

    return refusing
