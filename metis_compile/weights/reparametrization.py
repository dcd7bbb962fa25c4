"""Weights split once and trained in four parts, W = left diag(scale) right + residual, and put together again.

Source: the published alternative of metis for weights (arXiv 2509.00404, first version). The dominant directions and
the rest are then matrices of their own, each multiplied, and quantized, by itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metis_compile.conditioning.orthonormal import unit_columns
from metis_compile.conditioning.rank import check_rank, resolve_rank
from metis_compile.conditioning.spectral import Spectral
from metis_compile.policy.globs import compile_glob

PARTS = ("left", "scale", "right", "residual")
_SPLIT = Spectral(factors="high", sample=1.0, oversample=8, power_steps=4)


class SplitLinear(nn.Module):
    """A linear layer of four trained parts: left [out, k], scale [k], right [k, in], residual [out, in]; and a bias."""

    bias: nn.Parameter | None

    def __init__(self, parts: Sequence[Tensor], bias: nn.Parameter | None) -> None:
        super().__init__()
        self.left, self.scale, self.right, self.residual = (nn.Parameter(part) for part in parts)
        self.out_features, self.in_features = self.residual.shape
        self.register_parameter("bias", bias)

    @classmethod
    def of(cls, linear: nn.Linear, rank: int | float | str) -> SplitLinear:
        """Takes over the bias itself; the weight is copied. Trains what the weight did."""
        parts = [part.to(linear.weight.dtype) for part in _parts(linear.weight.detach().to(torch.float32), rank)]
        parts[3] = linear.weight.detach() - _product(*parts[:3]).to(linear.weight.dtype)
        made = cls(parts, linear.bias)
        for name in PARTS:
            getattr(made, name).requires_grad_(linear.weight.requires_grad)
        return made.train(linear.training)

    @property
    def weight(self) -> Tensor:
        """[out, in]: what the parts make up, with gradients to all four."""
        return _product(self.left, self.scale, self.right) + self.residual

    def forward(self, x: Tensor) -> Tensor:
        thin = F.linear(x, self.right) * self.scale
        return F.linear(x, self.residual, self.bias) + F.linear(thin, self.left)

    def extra_repr(self) -> str:
        sizes = f"in_features={self.in_features}, out_features={self.out_features}, rank={len(self.scale)}"
        return f"{sizes}, bias={self.bias is not None}"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """A plain model's weight is split on the way in, to this layer's rank."""
        weight = state_dict.pop(f"{prefix}weight", None)
        if weight is not None:
            parts = list(_parts(weight.detach().to(torch.float32), len(self.scale)))
            parts = [part.to(self.residual.dtype) for part in parts]
            parts[3] = weight.to(self.residual.dtype) - _product(*parts[:3])
            state_dict.update({f"{prefix}{name}": part for name, part in zip(PARTS, parts, strict=True)})
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def reparametrize(
    model: nn.Module, rank: int | float | str = 0.015, *, modules: str | Sequence[str] = "*"
) -> nn.Module:
    """Replaces linear layers by :class:`SplitLinear`, in place; the model computes what it did before, to rounding.

    rank: of the dominant part, a number or a share of the smaller side. modules: globs, as in policy files, over the
    layers' names. Only layers of the class nn.Linear itself, and of a weight that no other module shares, are replaced;
    a model that is one such layer is returned as a new module. A layer with several names is replaced by one module
    under all of them, where a glob meets any. Make the optimizer afterwards.
    Returns the model. Raises ValueError when there is nothing to replace, for a rank that is none, and for a layer that
    has hooks, which are of that module: register them afterwards.
    """
    check_rank(rank)
    globs = [compile_glob(glob) for glob in ([modules] if isinstance(modules, str) else modules)]
    owners: Counter[Tensor] = Counter(p for module in model.modules() for p in module.parameters(recurse=False))
    found = {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if type(module) is nn.Linear and owners[module.weight] == 1 and any(glob.fullmatch(name) for glob in globs)
    }
    if not found:
        raise ValueError(f"modules must name a linear layer whose weight is its own, got {modules!r}")
    _refuse_hooks(found)
    return _replace(model, {linear: SplitLinear.of(linear, rank) for linear in dict.fromkeys(found.values())})


def unreparametrize(model: nn.Module) -> nn.Module:
    """The inverse of :func:`reparametrize`, in place: each SplitLinear becomes nn.Linear again. Returns the model.

    One with several names becomes one again. Raises ValueError for one that has hooks: remove them first.
    """
    found = {name: module for name, module in model.named_modules() if isinstance(module, SplitLinear)}
    _refuse_hooks(found)
    return _replace(model, {module: _plain(module) for module in found.values()})


def plain_state_dict(model: nn.Module) -> dict[str, Any]:
    """The state_dict of the model before :func:`reparametrize`, weights put together; the model stays as it is."""
    modules = model.named_modules(remove_duplicate=False)
    layers = {name: module for name, module in modules if isinstance(module, SplitLinear)}
    state: dict[str, Any] = {}
    for key, value in model.state_dict().items():
        name, _, last = key.rpartition(".")
        if name not in layers or last not in PARTS:
            state[key] = value
        elif last == PARTS[0]:
            state[f"{name}.weight".lstrip(".")] = layers[name].weight.detach()
    return state


def _product(left: Tensor, scale: Tensor, right: Tensor) -> Tensor:
    return torch.mm(left * scale, right)


def _parts(weight: Tensor, rank: int | float | str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """float32 left, scale, right, residual of a float32 weight; always the same ones."""
    seed = torch.zeros(1, dtype=torch.int64, device=weight.device)
    basis = _SPLIT.fresh_basis(weight, seed, rank=resolve_rank(rank, *weight.shape))
    left, norms = unit_columns(torch.mm(weight, basis.mT))
    return left, norms[0], basis.contiguous(), weight - _product(left, norms[0], basis)


def _plain(layer: SplitLinear) -> nn.Linear:
    linear = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    linear.weight = nn.Parameter(layer.weight.detach(), requires_grad=layer.residual.requires_grad)
    linear.register_parameter("bias", layer.bias)
    return linear.train(layer.training)


def _refuse_hooks(layers: Mapping[str, nn.Module]) -> None:
    for name, layer in layers.items():
        if any(hooks for attribute, hooks in vars(layer).items() if attribute.endswith("_hooks")):
            raise ValueError(
                f"the module {name!r} has hooks, which its replacement would lose: remove them, register them on that"
            )


def _replace(model: nn.Module, made: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Under every name that a module has."""
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if name and module in made:
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, made[module])
    return made.get(model, model)
