"""Save and restore what compiled models keep from step to step, beside their own checkpoints."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from metis_compile.ranks import in_many_processes
from metis_compile.state.kept import Place, forget, in_use, joined, kept_by, named, parted, place_of
from metis_compile.state.shares import OtherShare, shares

PARAMETER = "parameter"  # beside the parts of a site: the shape of the parameter that it is, to tell models apart
SHARE = "share"  # that of the part of it that this process computed with, where that is not the whole
_SHOWN = 3  # entries that an error names


def state_dict(model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Copies of what the compiled parts of `model` keep across steps: for a checkpoint beside the model's own.

    model: compiled, with compiled submodules, or the module that was compiled, wrapped or not. Returns, for each site,
    the name of a parameter in the model (`layers.0.up.weight`) or of a module and what it calls
    (`layers.0.attention:matmul`), the parts that are kept there: `activation`, `weight` and `gradient`, the bases
    [rank, columns] of these operands, float32; `activation.amax` and so on, float32 [2], the amax that is held and how
    many steps it has served; `parameter`, the shape of the parameter, and `share`, of what this process has of it under
    tensor parallelism, int64. Empty where the policy keeps nothing, and before the first step unless a state was
    loaded. Raises TypeError for a compiled function: give the module whose parameters it uses.
    """
    found: dict[str, dict[str, Tensor]] = {}
    modules, here = list(_modules(model)), shares(model)
    for name, module in modules:
        for (attribute, part, shape), tensor in kept_by(module).items():
            parts = found.setdefault(joined(name, attribute), {})
            parts[part if part not in parts else f"{part} {list(shape)}"] = tensor.detach().clone()
            sizes = _parameter_shape(module, attribute)
            if sizes is not None:
                parts[PARAMETER] = torch.tensor(sizes, dtype=torch.int64, device="cpu")
                if (share := here.get(id(module._parameters[attribute]), sizes)) != sizes:
                    parts[SHARE] = torch.tensor(share, dtype=torch.int64, device="cpu")
    return found


def tensors(model: nn.Module) -> list[Tensor]:
    """The tensors themselves that `state_dict` gives copies of."""
    return [tensor for _, module in _modules(model) for tensor in kept_by(module).values()]


def load_state_dict(model: nn.Module, state: Mapping[str, Mapping[str, Tensor]], *, strict: bool = True) -> list[str]:
    """Puts back what `state_dict` gave, before the first step or after: steps go on as they would have, bit for bit.

    What wraps the model, compiles it and cuts it into graphs may be other than it was, and may come before or after.
    What `state` does not hold begins anew. Returns the entries that were left out, as `layers.0.up.weight: activation`:
    none unless `strict` is false.

    Raises TypeError for what is no mapping; ValueError, and changes nothing, for an entry that cannot fit: of a site
    that the model does not have, of a parameter of another shape, of a basis of another shape than those of the graphs
    that were compiled already, or of a share that tensor parallelism of another degree has; and for a state of an
    earlier version, which was of graphs. A basis that fits the model but not a policy that is compiled later is kept,
    unused, and a warning says so in the first step.
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"metis: a state is what metis_compile.state_dict gives, got {type(state).__name__}")
    modules: dict[str, nn.Module] = {}
    for name, module in _modules(model):
        modules[name] = module  # of several of one name, the innermost
    taken: list[tuple[nn.Module, Place, Tensor]] = []
    refused: dict[str, str] = {}
    here = shares(model)
    for site, parts in state.items():
        _take(site, parts, modules, here, taken, refused)
    if refused and strict:
        shown = "; ".join(f"{entry}: {why}" for entry, why in list(refused.items())[:_SHOWN])
        more = f"; and {len(refused) - _SHOWN} more" if len(refused) > _SHOWN else ""
        raise ValueError(f"metis: the state does not fit: {shown}{more}; strict=False leaves such entries out")
    for module in modules.values():
        forget(module)
    for module, place, tensor in taken:
        with torch.inference_mode(False), torch.no_grad():
            place_of(module)[place] = tensor.detach().clone()
    return list(refused)


def _take(
    site: str,
    parts: Any,
    modules: Mapping[str, nn.Module],
    here: Mapping[int, list[int]],
    taken: list[tuple[nn.Module, Place, Tensor]],
    refused: dict[str, str],
) -> None:
    """Adds the parts of one site to what is taken, or to what is refused, with the reason."""
    if not isinstance(parts, Mapping) or not all(isinstance(tensor, Tensor) for tensor in parts.values()):
        refused[site] = "it must hold tensors by the names of their parts"
        return
    if re.fullmatch(r".*#\d+", site) and set(parts) == {"forward", "backward"}:
        refused[site] = "this is a state of an earlier version, which kept bases by graph and not by site"
        return
    owner, attribute = parted(site)
    module = modules.get(owner)
    if module is None or not (attribute.startswith(":") or hasattr(module, attribute)):
        refused[site] = (
            f"it is of another model: there is no {'module' if module is None else 'parameter'} of this name"
        )
        return
    sizes, own = parts.get(PARAMETER), _parameter_shape(module, attribute)
    if sizes is not None and own is not None and sizes.tolist() != own:
        refused[site] = f"it is of another model: the parameter has the shape {own}, and had {sizes.tolist()}"
        return
    other = None
    if sizes is not None and own is not None:
        had, has = parts.get(SHARE, sizes).tolist(), here.get(id(module._parameters[attribute]), own)
        if had != has and (has != own or not in_many_processes()):  # else it may be shared out after it is loaded
            other = OtherShare(had, has)
    used: dict[str, list[tuple[int, ...]]] = {}
    for there, part, shape in in_use(module):
        if there == attribute:
            used.setdefault(part, []).append(shape)
    given: dict[str, list[tuple[int, ...]]] = {}
    for key, tensor in parts.items():
        given.setdefault(_part(key), []).append(tuple(tensor.shape))
    for key, tensor in parts.items():
        part, entry = _part(key), f"{site}: {key}"
        basis = parts.get(key.partition(".")[0])  # that of `activation.steps`, too
        if part in (PARAMETER, SHARE):
            continue
        if tensor.dtype != torch.float32 or not 1 <= tensor.dim() <= 2:
            refused[entry] = f"it must be a float32 matrix, got {tensor.dtype} of the shape {list(tensor.shape)}"
        elif other is not None and basis is not None and other.changes(basis.shape[-1]):
            refused[entry] = (
                f"it has the shape {list(tensor.shape)}, of a share {other.had} of the parameter, and this process "
                f"computes with {other.has}: tensor parallelism of another degree"
            )
        elif part in used and not set(used[part]) & set(given[part]):
            needed = " or ".join(str(list(shape)) for shape in used[part])
            refused[entry] = f"it has the shape {list(tensor.shape)}, and this model and policy need {needed}"
        else:
            taken.append((module, (attribute, part, tuple(tensor.shape)), tensor))


def _part(key: str) -> str:
    """`activation` of `activation [4, 32]`, which is written where there are bases of several shapes."""
    return key.partition(" [")[0]


def _modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"metis: a state is that of an nn.Module, got {type(model).__name__}: give the compiled module")
    return named(model)


def _parameter_shape(module: nn.Module, attribute: str) -> list[int] | None:
    """Of the whole parameter, also where a DTensor has a share of it here; None where FSDP1 has made it flat."""
    parameter = module._parameters.get(attribute)
    return list(parameter.shape) if parameter is not None and parameter.dim() > 1 else None
