"""What the operators of one graph reach when it runs for one module: the tensors kept at its sites."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from metis_compile.naming.tree import tree_of
from metis_compile.state.kept import Place, first_values, parted, place_of, use

log = logging.getLogger("metis_compile.state")


class Sites:
    """Where the sites of a graph are, by the names that it was compiled with.

    base: what the compiled module was called then; module: the one that runs now. roots: where to look for what is in
    neither, such as a tied weight.
    """

    def __init__(self, module: nn.Module | None, base: str, roots: Sequence[nn.Module]) -> None:
        self.module, self.base = None if module is None else weakref.ref(module), base
        self.roots = [weakref.ref(root) for root in roots]
        self._names: dict[int, dict[str, weakref.ref[nn.Module]]] = {}  # id of a root -> its parts by name

    def __getitem__(self, site: str) -> tuple[nn.Module, str] | None:
        """The module that a tensor is kept beside, and its site's attribute; None where there is no module for it."""
        module = None if self.module is None else self.module()
        inside = site == self.base or site.startswith((f"{self.base}.", f"{self.base}:")) or not self.base
        if module is not None and inside:
            found = self._find(module, site[len(self.base) :].lstrip("."))
            if found is not None:
                return found
        for root in (ref() for ref in self.roots):
            found = None if root is None else self._find(root, site)
            if found is not None:
                return found
        return None if module is None else (module, f":{site}")

    def _find(self, root: nn.Module, site: str) -> tuple[nn.Module, str] | None:
        if id(root) not in self._names:
            parts = tree_of(root).by_name()
            self._names[id(root)] = {name: weakref.ref(module) for name, module in parts.items()}
        owner, attribute = parted(site)
        ref = self._names[id(root)].get(owner)
        module = None if ref is None else ref()
        return None if module is None else (module, attribute)


class Keeper:
    """Loads and stores what is kept at the sites of one graph, beside their modules.

    sites: None for a graph of no module, and where nothing is to be listed: it then keeps its tensors to itself.
    """

    def __init__(self, sites: Sites | None = None) -> None:
        self.sites = sites
        self._own: dict[Place, Tensor] = {}
        self._known: dict[Place, tuple[dict[Place, Tensor], Place]] = {}  # by site, part and shape
        self._differs = False

    def load(self, site: str, part: str, shape: Sequence[int], device: torch.device) -> Tensor:
        tensors, place = self._place(site, part, shape)
        tensor = tensors.get(place)
        if tensor is None:
            self._say_what_differs(tensors, site, place)
            tensor = tensors[place] = first_values(shape, device)
        elif tensor.device != device:  # a checkpoint's
            tensor = tensors[place] = tensor.to(device)
        return tensor

    def store(self, site: str, part: str, value: Tensor) -> None:
        self.load(site, part, value.shape, value.device).data.copy_(value)

    def _place(self, site: str, part: str, shape: Sequence[int]) -> tuple[dict[Place, Tensor], Place]:
        key = site, part, tuple(shape)
        if key not in self._known:
            found = self.sites[site] if self.sites is not None else None
            if found is None:
                return self._own, key
            module, attribute = found
            place = attribute, part, tuple(shape)
            use(module, place)
            self._known[key] = place_of(module), place
        return self._known[key]

    def _say_what_differs(self, tensors: dict[Place, Tensor], site: str, place: Place) -> None:
        others = [list(shape) for attribute, part, shape in tensors if (attribute, part) == place[:2]]
        if others and not self._differs:
            self._differs = True  # once for a graph
            log.warning(
                "metis: a graph keeps bases of its own beside those of a checkpoint or of another graph, since they "
                "differ in shape: %s of %s is %s, and there is %s",
                place[1],
                site,
                list(place[2]),
                ", ".join(map(str, others)),
            )


class Noted:
    """A keeper that notes what a forward reads, before it moves on, as a checkpointed one that may run again."""

    def __init__(self, keeper: Keeper) -> None:
        self.keeper = keeper
        self.before: dict[Place, Tensor] = {}

    def load(self, site: str, part: str, shape: Sequence[int], device: torch.device) -> Tensor:
        tensor = self.keeper.load(site, part, shape, device)
        self.before[site, part, tuple(shape)] = tensor.detach().clone()
        return tensor

    def store(self, site: str, part: str, value: Tensor) -> None:
        self.keeper.store(site, part, value)


class Repeated:
    """What a forward reads that runs again: what was noted of it. It moves nothing on."""

    def __init__(self, noted: Noted) -> None:
        self.noted = noted

    def load(self, site: str, part: str, shape: Sequence[int], device: torch.device) -> Tensor:
        known = self.noted.before.get((site, part, tuple(shape)))
        return self.noted.keeper.load(site, part, shape, device) if known is None else known

    def store(self, site: str, part: str, value: Tensor) -> None:
        pass
