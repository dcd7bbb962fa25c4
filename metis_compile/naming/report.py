"""One warning at the first compile of a model: rules that match nothing in it, and a policy that rewrites nothing."""

from __future__ import annotations

import warnings
import weakref
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

from torch import nn

from metis_compile.naming.graph_names import GraphNames
from metis_compile.passes.graph.provenance import block_of
from metis_compile.passes.graph.sites import Site
from metis_compile.policy import Policy, Rule, presets
from metis_compile.policy.treatment import HIGH

_SHOWN = 3  # names and reasons at most


class PolicyWarning(UserWarning):
    """A policy that does less to a model than it says: a rule that matches nothing, or nothing that is rewritten."""


@dataclass(kw_only=True)
class _Compiled:
    """What was compiled of one model under one policy."""

    matrices: int = 0
    rewritten: int = 0
    has_backward: bool = False
    unseen: bool = False  # whether Inductor's cache had one of the graphs, so that no pass saw its products
    decided: set[int] = field(default_factory=set)  # places of the rules that decided something
    left: Counter[str] = field(default_factory=Counter)  # why products were left
    warned: bool = False
    told: set[int] = field(default_factory=set)  # rules that a warning has named


# outermost model -> digest of a policy -> what was compiled of it
_COMPILED: weakref.WeakKeyDictionary[nn.Module, dict[str, _Compiled]] = weakref.WeakKeyDictionary()
# what was said: of several models of a class, and of blocks that are compiled one by one, once
_SAID: set[str] = set()


def clear() -> None:
    """Forgets what was compiled, and that it was warned of."""
    _COMPILED.clear()
    _SAID.clear()


class Report:
    """Gathers what the passes do to a graph, and warns of what a policy does not do once as much was compiled.

    served: how many modules the graph may serve, one number for each time that it is compiled; empty for one.
    """

    def __init__(self, names: GraphNames, policy: Policy, served: Sequence[int]) -> None:
        self.policy, self.tree, self.base, self.is_part = policy, names.tree, names.base, names.is_part
        self.compiled = _Compiled()
        if self.tree is not None:
            self.compiled = _COMPILED.setdefault(self.tree.root, {}).setdefault(policy.digest(), self.compiled)
        self.compiled.matrices += names.matrices * max(1, sum(served))

    def add_unseen(self) -> None:
        """Takes in a graph that Inductor's cache had: nothing is known of its products."""
        self.compiled.unseen = True

    def add(self, sites: Sequence[Site]) -> None:
        """Takes in the products of a graph, decided and rewritten."""
        for site in sites:
            self.compiled.has_backward |= site.gemm != "fprop"
            self.compiled.rewritten += site.reason is None
            if site.reason is not None:
                self.compiled.left[site.reason] += 1
            found = (o.decision.index for o in site.operands if o.decision is not None)
            self.compiled.decided.update(index for index in found if index is not None)

    def finish(self) -> None:
        """Warns, if there is something to warn of and it was not said before."""
        if self.tree is None or all(rule.recipe == HIGH for rule in self.policy.rules):
            return
        said = [*self._unmatched(), *self._nothing(), *self._alone()]
        text = f"metis: policy {self.policy.name}: " + "; ".join(said)
        if said:
            self.compiled.warned = True
        if said and text not in _SAID:
            _SAID.add(text)
            warnings.warn(text, PolicyWarning, stacklevel=2)
        self.tree = self.base = None  # what is compiled holds this, and must not hold the model

    def _unmatched(self) -> list[str]:
        found = []
        for index, rule in enumerate(self.policy.rules):
            if index in self.compiled.told or index in self.compiled.decided:
                continue
            why = self._why_unmatched(rule)
            if why is not None:
                self.compiled.told.add(index)
                found.append(f"{rule.label} matches nothing: {why}")
        return found

    def _why_unmatched(self, rule: Rule) -> str | None:
        assert self.tree is not None
        own = rule.source == self.policy.name and _conditions(rule) not in _of_presets()
        names = set(self.tree.modules.values())
        if rule.blocks is not None or (own and rule.module is not None):
            if any(rule.matches_place(name, block_of(name, self.tree.depths)) for name in names):
                return None
            kind = type(self.tree.root).__name__
            if rule.blocks is not None and not self.tree.depths:
                return f"{kind} has no numbered blocks; {_REGISTER}"
            shown = sorted(names - {""}, key=lambda name: (-name.count("."), name))[:_SHOWN]
            return f"the names in {kind} are such as {', '.join(shown) or 'none but its own'}; {_REGISTER}"
        if not own or self.compiled.unseen or not self._most_is_compiled() or rule.label.endswith("(any)"):
            return None
        backward = {"dgrad", "wgrad"} >= set(rule.gemm or ("fprop",)) or rule.operand == ("gradient",)
        if backward and not self.compiled.has_backward:
            return None
        return "no product has all that it asks for, or rules before it decide them all"

    def _nothing(self) -> list[str]:
        compiled = self.compiled
        if (
            compiled.warned
            or compiled.unseen
            or compiled.rewritten
            or not compiled.left
            or not self._most_is_compiled()
        ):
            return []
        reasons = [f"{count} are left as {reason}" for reason, count in compiled.left.most_common(_SHOWN)]
        return [f"none of {sum(compiled.left.values())} products is rewritten: " + ", ".join(reasons)]

    def _alone(self) -> list[str]:
        """Of a linear that is compiled by itself and called by no module: it may be a head, and nothing tells."""
        asked = any(rule.kind is not None or rule.module is not None for rule in self.policy.rules)
        if not isinstance(self.base, nn.Linear) or self.is_part or self.compiled.warned or not asked:
            return []
        kind = type(self.base).__name__
        return [f"a {kind} is compiled and called by itself, so nothing tells whether it is a head; {_REGISTER}"]

    def _most_is_compiled(self) -> bool:
        assert self.tree is not None
        return 0 < self.tree.matrices <= 2 * self.compiled.matrices


def _conditions(rule: Rule) -> str:
    """What a rule asks for, without where it stands: `(kind=router)`."""
    return rule.label.partition("(")[2]


@cache
def _of_presets() -> frozenset[str]:
    """What the rules of presets ask for. A policy that extends one may be written out in one file."""
    return frozenset(_conditions(rule) for name in presets() for rule in Policy.load(name).rules)


_REGISTER = "if this is a part of a model, say of which before the first call: metis_compile.name_modules(model)"
