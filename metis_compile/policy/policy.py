"""A policy: named recipes, and ordered rules that say which recipe each operand of each GEMM gets."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from metis_compile.conditioning.hadamard import SIZE
from metis_compile.policy.document import Document, read_reference, read_text
from metis_compile.policy.errors import PolicyError, unknown_name
from metis_compile.policy.loading import RULE_KEYS, load_recipes_and_rules
from metis_compile.policy.rule import DecideCondition, Decision, Query, Rule, check_gain, gain_format
from metis_compile.policy.splits import split_meaning
from metis_compile.policy.treatment import HIGH, HIGH_RECIPE, TREATMENT_KEYS, Recipe, Treatment
from metis_compile.policy.writing import to_toml

_DIGEST_VERSION = 1  # raised when the meaning of an unchanged policy changes
# Keys of treatments that came later, with what they are where a policy of before says nothing: its digest stays.
_LATER_KEYS: dict[str, object] = {"hadamard_size": SIZE, "estimator": None, "hold_amax": None}


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Which operand of which GEMM is quantized, and how.

    For each operand the first rule that matches decides; where none does, the operand stays in high precision
    and the decision says so. (There is no separate default: a last rule without conditions is one.)

    Equality, hash and digest go by meaning, the recipes and rules; names, files and comments do not count.
    """

    recipes: tuple[Recipe, ...] = ()  # sorted by name; "high" is always there and not among them
    rules: tuple[Rule, ...]  # in the order in which they are tried
    name: str = field(default="policy", compare=False)  # what reports call it: "run.toml"
    source: str | None = field(default=None, compare=False)  # the path it was read from

    def __post_init__(self) -> None:
        recipes = {recipe.name: recipe for recipe in self.recipes if recipe.name != HIGH}
        if len(recipes) < sum(recipe.name != HIGH for recipe in self.recipes):
            names = [recipe.name for recipe in self.recipes]
            twice = next(name for name in names if names.count(name) > 1)
            raise PolicyError(f"two recipes are named {twice}", key=f"recipe {twice}", value=twice)
        rules = []
        for number, rule in enumerate(self.rules, start=1):
            if rule.recipe != HIGH and rule.recipe not in recipes:
                raise unknown_name(rule.recipe, [*recipes, HIGH], key=f"rule {number}, recipe")
            try:
                check_gain(rule, recipes.get(rule.recipe, HIGH_RECIPE))
            except PolicyError as error:
                raise error.at(key=f"rule {number}, when") from None
            rules.append(rule if rule.number else replace(rule, source=self.name, number=number))
        object.__setattr__(self, "recipes", tuple(recipes[name] for name in sorted(recipes)))
        object.__setattr__(self, "rules", tuple(rules))

    @classmethod
    def load(cls, policy: "str | os.PathLike[str] | Policy", *, trust: bool = True) -> "Policy":
        """A preset by its name, a file by its path, or a Policy as it is.

        A text that is a preset's name means the preset, even where a file has that name (write ``./nvfp4``
        for the file). trust: whether the file, and those that it extends, may name a split of one's own,
        ``"module:Class"``, whose module is imported and so run; with False such a file is refused and nothing of it is
        run, as ``torch.load`` does with ``weights_only=True``. Give False for a path that came with somebody else's
        data.

        Raises PolicyError with the file, line, value, what is allowed and the nearest valid name, and nothing else,
        whatever is in the file.
        """
        if isinstance(policy, Policy):
            return policy
        return cls._of(read_reference(policy, trust=trust))

    @classmethod
    def from_toml(
        cls, text: str, *, name: str = "<text>", folder: str | os.PathLike[str] = ".", trust: bool = True
    ) -> "Policy":
        """A policy from the text of a policy file. ``name`` is what reports and errors call it; paths in
        ``extends`` are relative to ``folder``. ``trust`` and the errors are as in ``load``."""
        document = read_text(text, name, Path(folder), trust=trust)
        return replace(cls._of(document), source=None)

    @classmethod
    def _of(cls, document: Document) -> "Policy":
        inner: Document | None = document
        while inner is not None:
            if "stage" in inner.data:
                problem = "a file with stages is a schedule, not a policy: metis_compile.Schedule.load reads it"
                raise inner.error(PolicyError(problem, value="stage"), ("stage",), "stage")
            inner = inner.parent
        recipes, rules = load_recipes_and_rules(document)
        return cls(name=document.name, source=document.file, recipes=tuple(recipes), rules=tuple(rules))

    def to_toml(self) -> str:
        """The policy as one self-contained file: ``Policy.from_toml(policy.to_toml()) == policy``."""
        return to_toml(self.name, self.recipes, self.rules)

    def recipe(self, name: str) -> Recipe:
        """The recipe ``name``; PolicyError if the policy has none of that name."""
        for recipe in (HIGH_RECIPE, *self.recipes):
            if recipe.name == name:
                return recipe
        raise unknown_name(name, [HIGH, *(recipe.name for recipe in self.recipes)])

    def decide(self, query: Query, decide_condition: DecideCondition | None = None) -> Decision:
        """The treatment of one operand of one GEMM, by the first rule that matches.

        ``decide_condition`` is called with a sympy boolean, over the symbols of the query's sizes, when a
        rule that otherwise applies has a condition that these sizes leave open; it returns whether the
        condition is to be taken as true. Raises PolicyError if it is needed and not given.
        """
        for index, rule in enumerate(self.rules):
            format = None if rule.when is None else gain_format(self.recipe(rule.recipe), query.operand)
            if rule.matches(query, decide_condition, format):
                treatment = self.recipe(rule.recipe).treatment(query.operand)
                return Decision(treatment=treatment, recipe=rule.recipe, rule=rule.label, index=index)
        return Decision(
            treatment=HIGH_RECIPE.treatment(query.operand),
            recipe=HIGH,
            rule=f"no rule of {self.name} matched",
            index=None,
        )

    def unused(self, counts: Mapping[int, int]) -> list[Rule]:
        """The rules that decided nothing, in order. ``counts`` holds how often each ``Decision.index`` came
        up.

        ``rule.source`` tells a rule of the policy's own file (equal to ``policy.name``) from an inherited
        one.
        """
        return [rule for index, rule in enumerate(self.rules) if not counts.get(index, 0)]

    def digest(self) -> str:
        """A SHA-256 in hex of what the policy means: equal for equal policies, the same in every process."""
        meaning = {
            "version": _DIGEST_VERSION,
            "recipes": [[recipe.name, *map(_treatment_values, recipe.treatments)] for recipe in self.recipes],
            "rules": [[getattr(rule, key) for key in RULE_KEYS] for rule in self.rules],
        }
        return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()


def _treatment_values(treatment: Treatment) -> list[object]:
    split = None if treatment.split is None else split_meaning(treatment.split)
    values = [split if key == "split" else getattr(treatment, key) for key in TREATMENT_KEYS if key not in _LATER_KEYS]
    later = [(key, getattr(treatment, key)) for key in _LATER_KEYS]
    return values + [[key, value] for key, value in later if value not in (None, _LATER_KEYS[key])]
