"""Where it lies: beside each module, the tensors that its products keep across steps.

Modules outlast what wraps them: torch.compile, DDP, FSDP (which replaces parameters), checkpoint_wrapper and peft
leave a module the same object. A tensor's place is the attribute of the module that is its site (a parameter's name, or
a colon and what was called), its part, and its shape: graphs whose bases differ in shape have one each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from metis_compile.naming.tree import tree_of

Place = tuple[str, str, tuple[int, ...]]  # attribute, part, shape

_SEED = 2025  # of the rows that bases start from
_KEPT: WeakIdKeyDictionary = WeakIdKeyDictionary()  # module -> its tensors by their places
_IN_USE: WeakIdKeyDictionary = WeakIdKeyDictionary()  # module -> the places that a graph has read


def clear() -> None:
    """Forgets everything, as torch.compiler.reset() forgets every compiled graph."""
    _KEPT.clear()
    _IN_USE.clear()


def first_values(shape: Sequence[int], device: torch.device) -> Tensor:
    """float32 values between -1 and 1, always the same: rows of full rank, for power steps to start from.

    Of one dimension, 0: no step has been counted.
    """
    with torch.inference_mode(False), torch.no_grad():
        if len(shape) == 1:
            return torch.zeros(list(shape), device=device)
        generator = torch.Generator("cpu").manual_seed(_SEED)
        return torch.rand(list(shape), generator=generator, device="cpu").mul_(2).sub_(1).to(device)


def kept_by(module: nn.Module) -> Mapping[Place, Tensor]:
    """What is kept beside a module, in the order in which it was first used or loaded."""
    found: Mapping[Place, Tensor] = _KEPT.get(module, {})
    return found


def place_of(module: nn.Module) -> dict[Place, Tensor]:
    """The same, to be changed."""
    found: dict[Place, Tensor] = _KEPT.setdefault(module, {})
    return found


def forget(module: nn.Module) -> None:
    """Drops what is kept beside a module; graphs that use it begin anew."""
    place_of(module).clear()  # and not the dictionary, which these hold


def parted(site: str) -> tuple[str, str]:
    """The module of a site, and its attribute there: `up` and `weight` of `up.weight`, `up` and `:mm` of `up:mm`."""
    path, colon, called = site.partition(":")
    if colon:
        return path, f":{called}"
    owner, _, attribute = path.rpartition(".")
    return owner, attribute


def joined(module: str, attribute: str) -> str:
    """The name of a site: what `parted` takes apart."""
    return f"{module}{attribute}" if attribute.startswith(":") else f"{module}.{attribute}".lstrip(".")


def use(module: nn.Module, place: Place) -> None:
    """Notes that a graph reads this tensor."""
    _IN_USE.setdefault(module, {})[place] = None


def in_use(module: nn.Module) -> list[Place]:
    """The places beside a module that graphs of this process have read, in order."""
    return list(_IN_USE.get(module, ()))


def named(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules of a model with their names, whatever wraps them."""
    modules = {id(module): module for module in model.modules()}
    for key, name in tree_of(model).modules.items():
        yield name, modules[key]
