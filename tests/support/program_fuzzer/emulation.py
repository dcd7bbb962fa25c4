"""An eager run whose products are quantized as a policy says, by `metis_compile.quantize` and nothing of the passes.

What each operand is, is told by what its memory was made from. Forward products are known to their gradients by
autograd's number, which a backward operator carries.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import metis_compile
from metis_compile import Policy
from metis_compile.numerics import QuantSpec
from metis_compile.policy import Query

aten = torch.ops.aten
PRODUCTS: dict[Any, tuple[int, int]] = {
    aten.mm.default: (0, 1),
    aten.addmm.default: (1, 2),
    aten.addmm_.default: (1, 2),
    aten.bmm.default: (0, 1),
    aten.baddbmm.default: (1, 2),
    aten.addbmm.default: (1, 2),
}
GROUPED = aten._grouped_mm.default
QUANTIZED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def quantized(x: Tensor, spec: QuantSpec | None, axis: int) -> Tensor:
    """float32, along `axis`, from nearest rounding."""
    if spec is None:
        return x.float()
    q = metis_compile.quantize(
        x, spec.format, axis, spec.block, spec.rounding, scale_mode=spec.scale_mode, select=spec.select
    )
    return q.dequantize().float()


@dataclass
class Forward:
    """What a backward product has to know of its forward product."""

    memory: tuple[int, int]
    roles: tuple[str, str]
    has_weight: bool


@dataclass
class Origin:
    """What a piece of memory was made from."""

    parameter: bool = False
    data: bool = False
    tangent: bool = False
    argument: bool = False  # the matrix of a parameter that the caller passes, itself or cast
    alive: list[Tensor] = field(default_factory=list)  # so that no other tensor gets its address


class Emulation(TorchDispatchMode):
    """Within: products are quantized. noise: how far each operand is moved at random first, relative to a last bit.

    A policy of None quantizes nothing.
    """

    def __init__(self, policy: Policy | None, noise: dict[torch.dtype, float] | None = None, seed: int = 0) -> None:
        super().__init__()
        self.policy, self.noise = policy, noise
        self.generator = torch.Generator().manual_seed(seed)
        self.origins: dict[int, Origin] = {}
        self.forward: dict[int, list[Forward]] = {}
        self.products = 0
        self.functions = _Functions()

    def __enter__(self) -> Emulation:
        self.functions.__enter__()
        return super().__enter__()  # type: ignore[no-any-return]

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self.functions.__exit__(*exception)

    def declare(self, tensor: Tensor, **of: bool) -> None:
        self.origins[_memory(tensor)] = Origin(alive=[tensor], **of)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if (func in PRODUCTS or func is GROUPED) and not _is_written_out(func, args):
            out = self._product(func, args, kwargs)
        else:
            out = func(*args, **kwargs)
        self._mark(func, out, args, kwargs)
        return out

    def _mark(self, func: Any, out: Any, args: Any, kwargs: Any) -> None:
        sources = [self.origin(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                known = _memory(tensor) in self.origins
                origin = self.origin(tensor)
                if not known:
                    copied = args[0] if func in (aten._to_copy.default, aten.clone.default) else None
                    origin.argument = copied is not None and self._is_argument(copied)
                for name in ("parameter", "data", "tangent"):
                    setattr(origin, name, getattr(origin, name) or any(getattr(s, name) for s in sources))

    def origin(self, tensor: Tensor) -> Origin:
        if _memory(tensor) not in self.origins:
            self.origins[_memory(tensor)] = Origin(alive=[tensor])
        return self.origins[_memory(tensor)]

    def _is_argument(self, tensor: Tensor) -> bool:
        """Whether it is an argument, rearranged or repeated, and no part of one."""
        sizes = zip(tensor.shape, tensor.stride(), strict=True)
        elements = math.prod(size for size, stride in sizes if stride != 0)
        whole = elements * tensor.itemsize == tensor.untyped_storage().nbytes()
        return self.origin(tensor).argument and whole

    def _role(self, tensor: Tensor) -> str:
        origin = self.origin(tensor)
        if origin.tangent:
            return "gradient"
        return "weight" if origin.parameter and not origin.data else "activation"

    def _product(self, func: Any, args: Any, kwargs: Any) -> Any:
        self.products += 1
        args = list(args)
        i, j = PRODUCTS.get(func, (0, 1))
        offs = None
        if func is GROUPED:
            offs = args[2] if len(args) > 2 else kwargs["offs"]
        a, b = args[i], args[j]
        specs: list[QuantSpec | None] = [None, None]
        if self.policy is not None and {a.dtype, b.dtype} <= set(QUANTIZED_DTYPES):
            joined = a.shape[0] if func is aten.addbmm.default else 1  # one product of all its batch
            specs = self._specs(a, b, offs, joined)
        if self.noise is not None:
            a, b = (x * (1 + self.noise[x.dtype] * self._random(x)) for x in (a, b))
            a, b = a.to(args[i].dtype), b.to(args[j].dtype)
        if specs == [None, None] and (offs is None or self.noise is None):  # moved experts lie otherwise in memory
            args[i], args[j] = a, b
            return func(*args, **kwargs)
        if offs is not None:
            return _grouped(a, b, offs.tolist(), specs).to(a.dtype)
        if func is aten.addbmm.default:
            a, b = a.permute(1, 0, 2).reshape(a.shape[1], -1), b.reshape(-1, b.shape[2])
            func = aten.addmm.default
        args[i], args[j] = quantized(a, specs[0], a.dim() - 1), quantized(b, specs[1], b.dim() - 2)
        if func is aten.addmm_.default:
            return args[0].copy_(aten.addmm.default(*(x.float() for x in args), **kwargs))
        return func(*(x.float() for x in args), **kwargs).to(a.dtype)

    def _random(self, x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=self.generator).to(x.dtype)

    def _specs(self, a: Tensor, b: Tensor, offs: Tensor | None, joined: int) -> list[QuantSpec | None]:
        """What the policy says of both operands."""
        assert self.policy is not None
        roles = [self._role(a), self._role(b)]
        memory = _memory(a), _memory(b)
        if roles == ["gradient", "gradient"]:
            return [None, None]
        if "gradient" in roles:
            node = torch._C._current_autograd_node()  # type: ignore[attr-defined]
            other = 1 if roles[0] == "gradient" else 0
            gemm, has_weight = "dgrad", roles[other] == "weight"
            for forward in self.forward.get(node._sequence_nr() if node is not None else -1, []):
                if memory[other] in forward.memory:
                    at = forward.memory.index(memory[other])
                    if forward.memory[0] == forward.memory[1]:  # of a tensor with itself: g R^T sums over g's columns
                        at = int((a.stride(-1) if roles[0] == "gradient" else b.stride(-2)) == 1)
                    roles[other], has_weight = forward.roles[at], forward.has_weight
                    gemm = "wgrad" if forward.roles[1 - at] == "weight" else "dgrad"
                    break
        else:
            gemm = "fprop"
            given = self.functions.name == "linear" or (offs is not None and b.dim() == 3)
            if roles == ["activation", "activation"]:
                if given:
                    roles[1] = "weight"
                elif offs is None:
                    for at in (1, 0):
                        if self._is_argument((a, b)[at]):
                            roles[at] = "weight"
                            break
            has_weight = "weight" in roles
            forward = Forward(memory, (roles[0], roles[1]), has_weight)
            self.forward.setdefault(torch.autograd._get_sequence_nr() - 1, []).append(forward)
        m, k, n = a.shape[-2], joined * a.shape[-1], b.shape[-1]
        found = []
        for x, role in zip((a, b), roles, strict=True):
            query = Query(
                module="",
                block=None,
                op="mm",
                gemm=gemm,
                operand=role,
                dtype=str(x.dtype).removeprefix("torch."),
                has_weight=has_weight,
                m=m,
                n=n,
                k=k,
                kind=None if has_weight else "attention",
            )
            found.append(self.policy.decide(query).treatment.spec)
        return found


class _Functions(TorchFunctionMode):
    """Knows which of torch's functions is running."""

    name = ""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before, self.name = self.name, getattr(func, "__name__", "")
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.name = before


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _is_written_out(func: Any, args: Any) -> bool:
    """Whether Inductor writes it as sums of elementwise products before there is a product."""
    if func is GROUPED:
        return False
    a, b = (args[i] for i in PRODUCTS[func])
    m, k, n = a.shape[-2], a.shape[-1], b.shape[-1]
    if func in (aten.mm.default, aten.addmm.default, aten.addmm_.default, aten.bmm.default) and m == n == 1:
        return True
    if func in (aten.addmm.default, aten.addmm_.default):
        return m == 1 and k <= 16 and n <= 16
    if func is aten.bmm.default:
        return bool(k == 1)
    return bool(func is aten.mm.default and k == 1 and m != 1 and n != 1 and a.numel() + b.numel() <= 32)


def _grouped(a: Tensor, b: Tensor, ends: list[int], specs: list[QuantSpec | None]) -> Tensor:
    """All tokens are quantized as one matrix, those of no group as zeros; each group is then multiplied by itself.

    As rows, as columns of the second, or contracted.
    """
    last, spans = ends[-1], [slice(s, e) for s, e in zip([0, *ends], ends, strict=False)]
    a, b = a.clone(), b.clone()
    as_columns, over_tokens = a.dim() == 3, a.dim() == b.dim() == 2
    if as_columns:
        b[:, last:] = 0
    elif over_tokens:
        a[:, last:], b[last:] = 0, 0
    else:
        a[last:] = 0
    x, w = quantized(a, specs[0], a.dim() - 1), quantized(b, specs[1], b.dim() - 2)
    if over_tokens:
        return torch.stack([x[:, span] @ w[span] for span in spans])
    out = x.new_zeros(a.shape[-2], b.shape[-1])
    for i, span in enumerate(spans):
        if as_columns:
            out[:, span] = x[i] @ w[:, span]
        else:
            out[span] = x[span] @ w[i]
    return out
