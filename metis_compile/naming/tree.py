"""What a model calls its modules and parameters, seen through what wraps them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from metis_compile.passes.graph.provenance import split_block

# what torch.compile, FSDP and activation checkpointing call the module that they wrap
_WRAPPED = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_WRAPPERS = (DataParallel, DistributedDataParallel, AveragedModel)  # these call it `module`
_PEFT = ("base_model", "model", "base_layer", "original_module", "modules_to_save")


@dataclass(kw_only=True)
class ModuleTree:
    """Names under one model; a module that is in it twice has the name of its first place."""

    root: nn.Module
    modules: dict[int, str] = field(default_factory=dict)  # id of a module -> its name
    parameters: dict[int, str] = field(default_factory=dict)  # id of a parameter -> its name
    depths: dict[str, int] = field(default_factory=dict)  # name of a list of blocks -> how many it has
    heads: set[str] = field(default_factory=set)  # modules that the model says compute its logits
    embeddings: set[str] = field(default_factory=set)  # parameters that are tables of an nn.Embedding
    vocabulary: int | None = None  # rows of the largest table
    matrices: int = 0  # parameters that products may multiply

    def find(self, kind: type[nn.Module]) -> list[nn.Module]:
        """All modules of exactly this class, in order."""
        return [module for module in self.root.modules() if type(module) is kind]

    def by_name(self) -> dict[str, nn.Module]:
        """The modules by their names: of several that have one name, the innermost, which the others wrap."""
        modules = {id(module): module for module in self.root.modules()}
        return {name: modules[key] for key, name in self.modules.items()}


def tree_of(root: nn.Module) -> ModuleTree:
    """Walks through `root`: DDP, FSDP, torch.compile, checkpoint_wrapper and peft leave no trace in the names.

    The number of blocks is that of the model, whatever a graph holds: one more than the largest index.
    """
    tree = ModuleTree(root=root)
    _walk(tree, root, "", False)
    for name in tree.modules.values():
        if (found := split_block(name)) is not None:
            tree.depths[found[0]] = max(tree.depths.get(found[0], 0), found[1] + 1)
    return tree


def is_only_wrapped(module: nn.Module, by: nn.Module) -> bool:
    """Whether `by` is `module`, or wraps it in a way that leaves no trace in names."""
    return tree_of(by).modules.get(id(module)) == ""


def _walk(tree: ModuleTree, module: nn.Module, name: str, is_saved: bool) -> None:
    if id(module) in tree.modules:
        return
    tree.modules[id(module)] = name
    for key, parameter in module._parameters.items():
        if parameter is not None:
            tree.parameters.setdefault(id(parameter), f"{name}.{key}".lstrip("."))
    if isinstance(module, nn.Embedding):
        if isinstance(module.weight, Tensor):  # FSDP1 may have taken it away
            tree.embeddings.add(tree.parameters.get(id(module.weight), f"{name}.weight".lstrip(".")))
        tree.vocabulary = max(tree.vocabulary or 0, module.num_embeddings)
    else:
        tree.matrices += sum(p is not None and p.dim() > 1 for p in module._parameters.values())
    of_peft = _is_of_peft(module)
    for key, child in module._modules.items():
        if child is not None:
            hidden = is_saved or _is_wrapped(module, key) or (of_peft and key in _PEFT)
            inner = name if hidden else f"{name}.{key}".lstrip(".")
            _walk(tree, child, inner, of_peft and key == "modules_to_save")
    head = _logits_module(module)
    if head is not None and id(head) in tree.modules:
        tree.heads.add(tree.modules[id(head)])


def _is_wrapped(module: nn.Module, key: str) -> bool:
    """Whether a child is what its parent wraps, and so has its parent's name."""
    return key in _WRAPPED or (key == "module" and isinstance(module, _WRAPPERS))


def _is_of_peft(module: nn.Module) -> bool:
    """Whether a module is one of peft's: a wrapper of a model, or of a layer that has adapters."""
    return any(kind.__module__.partition(".")[0] == "peft" for kind in type(module).__mro__)


def _logits_module(module: nn.Module) -> Any:
    """What a model of transformers says is its output layer."""
    asked = getattr(type(module), "get_output_embeddings", None)
    if asked is None:
        return None
    try:
        return asked(module)
    except (AttributeError, NotImplementedError):  # it has none
        return None
