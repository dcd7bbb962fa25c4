"""One compiled graph serves all blocks of a class, where rules treat them alike; where they do not, there are several.

Dynamo runs the code that it compiled for the first block in all others too, so which block is called is told when it is
called: by the first parameter that is passed in, or, where parameters are no parameters (FSDP1), by who calls.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

from metis_compile.naming.graph_names import GraphNames, moved
from metis_compile.naming.outermost import caller, outermost
from metis_compile.naming.tree import ModuleTree, tree_of
from metis_compile.passes.graph.provenance import block_of
from metis_compile.policy import Policy
from metis_compile.policy.kinds import kind_by_name

Answers = tuple[Any, ...]


class ByName:
    """What a policy's rules say of the modules in a graph, by names alone, as if another block had been compiled."""

    def __init__(self, names: GraphNames, policy: Policy) -> None:
        self.base, self.called = names.base_name, names.called()
        self.rules = [rule for rule in policy.rules if rule.module is not None or rule.blocks is not None]

    def answers(self, name: str, tree: ModuleTree) -> Answers:
        """Equal for two blocks, by their names in `tree`, whose products no rule tells apart."""
        found: list[Any] = []
        for called in self.called:
            module = moved(called, self.base, name)
            block = block_of(module, tree.depths)
            found.append(kind_by_name(module, in_block=block is not None))
            found += [rule.matches_place(module, block) for rule in self.rules]
            found += [module in tree.heads]
        return tuple(found)


def variants(names: GraphNames, policy: Policy) -> dict[Answers, list[nn.Module]]:
    """The modules that a compiled part of a model may come to serve, by what rules say of them; its own come first."""
    tree, base = names.tree, names.base
    if tree is None or base is None or not names.is_part:
        return {}
    by_name = ByName(names, policy)
    found: dict[Answers, list[nn.Module]] = {}
    for module in [base, *(m for m in tree.find(type(base)) if m is not base and _alike(base, m, names))]:
        found.setdefault(by_name.answers(tree.modules[id(module)], tree), []).append(module)
    return found


def _alike(base: nn.Module, module: nn.Module, names: GraphNames) -> bool:
    """Whether Dynamo may run the code of one module in the other: their parameters have the same names and shapes.

    Where parameters are put in place for each call (FSDP1), nothing is known before it.
    """
    return names.has_plain_tensors or _shapes(base) == _shapes(module)


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


class PerModule:
    """Graphs compiled for several modules of one class, called as one."""

    def __init__(
        self,
        compiled: Sequence[Callable[..., Any]],
        modules: dict[Answers, list[nn.Module]],
        names: GraphNames,
        policy: Policy,
    ) -> None:
        assert names.base is not None
        self.compiled, self.kind, self.policy = compiled, type(names.base), policy
        self.by_name, self.known = ByName(names, policy), {key: i for i, key in enumerate(modules)}
        self.first = names.base_name
        self.position = min(names.inputs.parameters, default=None)
        self.which: WeakIdKeyDictionary = WeakIdKeyDictionary()
        for i, same in enumerate(modules.values()):
            for module in same:
                for owner in (module, *module.parameters()):
                    self.which.setdefault(owner, i)

    def __call__(self, *args: Any) -> Any:
        return self.compiled[self._choose(args)](*args)

    def _choose(self, args: Sequence[Any]) -> int:
        owner = args[self.position] if self.position is not None else None
        if not isinstance(owner, nn.Parameter) or owner not in self.which:
            module = caller(self.kind)
            if module is None:
                warnings.warn(
                    f"metis: nothing tells which {self.kind.__name__} runs this graph, and the rules of "
                    f"{self.policy.name} treat them differently: it runs as {self.first or 'the first'} does; call it "
                    "through its module, or pass that module's parameters",
                    stacklevel=2,
                )
                return 0
            if module not in self.which:
                self.which[module] = self._of(module)
            if not isinstance(owner, nn.Parameter):
                return int(self.which[module])
            self.which[owner] = self.which[module]
        return int(self.which[owner])

    def _of(self, module: nn.Module) -> int:
        """Which graph serves a module that was not there when they were compiled."""
        tree = tree_of(outermost(module))
        name = tree.modules[id(module)]
        found = self.known.get(self.by_name.answers(name, tree))
        if found is None:
            warnings.warn(
                f"metis: {name or 'a module'} of class {self.kind.__name__} runs a graph that was compiled for others, "
                f"and the rules of {self.policy.name} treat it differently: call torch.compiler.reset(), or compile "
                "this model under a policy of its own",
                stacklevel=3,
            )
        return found or 0
