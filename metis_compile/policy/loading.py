"""From the tables of a policy file to its recipes and rules; every mistake gets its file and line."""

import re
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from metis_compile.policy.document import Document, read_reference
from metis_compile.policy.errors import PolicyError, show, unknown_key, unknown_name
from metis_compile.policy.presets import preset_path, presets
from metis_compile.policy.rule import Rule, check_gain
from metis_compile.policy.toml_positions import Path as KeyPath
from metis_compile.policy.treatment import HIGH, HIGH_RECIPE, OPERANDS, TREATMENT_KEYS, Recipe, Treatment

RECIPE_KEYS = ("extends", *OPERANDS)
RULE_KEYS = ("recipe", "module", "kind", "blocks", "op", "gemm", "operand", "dtype", "has_weight", "when")


def load_recipes_and_rules(document: Document) -> tuple[list[Recipe], list[Rule]]:
    """The recipes and the ordered rules of ``document`` and all it extends. Raises PolicyError.

    A file's rules come before those of the file it extends, or after them where that says so; its recipes replace
    those of the same name there, also for the rules there. A rule may name any recipe of these files, "high", or a
    recipe of any preset.
    """
    recipes = _recipes(document)
    rules: list[Rule] = []
    for inner in _in_order(document):
        for path, rule in _rules(inner):
            if rule.recipe != HIGH and rule.recipe not in recipes:
                stock = _stock_recipe(rule.recipe)
                if stock is None:
                    error = unknown_name(rule.recipe, _known(recipes))
                    raise inner.error(error, (*path, "recipe"), f"rule {rule.number}, recipe")
                recipes[rule.recipe] = stock
            try:
                check_gain(rule, recipes.get(rule.recipe, HIGH_RECIPE))
            except PolicyError as error:
                raise inner.error(error, (*path, "when"), f"rule {rule.number}, when") from None
            rules.append(rule)
    return list(recipes.values()), rules


def _in_order(document: Document) -> list[Document]:
    """The file and all it extends, in the order in which their rules are tried."""
    if document.parent is None:
        return [document]
    inherited = _in_order(document.parent)
    return [*inherited, document] if document.parent.rules_first else [document, *inherited]


def _rules(document: Document) -> list[tuple[KeyPath, Rule]]:
    tables = document.data.get("rule", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        problem = f"rules are written as [[rule]], in double brackets, got {show(tables)}"
        raise document.error(PolicyError(problem, value=tables), ("rule",), "rule")
    rules = []
    for index, table in enumerate(tables):
        path: KeyPath = ("rule", index)
        place = f"rule {index + 1}"
        for key in table:
            if key not in RULE_KEYS:
                error = unknown_key("a rule", key, RULE_KEYS)
                if key == "extends":
                    error = PolicyError("belongs above the first [table] of the file", value=key)
                raise document.error(error, (*path, key), f"{place}, {key}")
        if "recipe" not in table:
            error = PolicyError('a rule must name a recipe: recipe = "NAME"', allowed=("recipe",))
            raise document.error(error, path, f"{place}, recipe")
        if isinstance(table["recipe"], dict):
            problem = "a recipe is defined outside of the rules: above the first [[rule]], or as [recipe.NAME]"
            error = PolicyError(problem, value=table["recipe"])
            raise document.error(error, (*path, "recipe"), f"{place}, recipe")
        try:
            rules.append((path, Rule(**table, source=document.name, number=index + 1)))
        except PolicyError as error:
            raise _placed(error, document, path, place, table) from None
    return rules


def _placed(error: PolicyError, document: Document, path: KeyPath, place: str, table: dict[str, Any]) -> PolicyError:
    """``error``, whose key is one of ``table`` at ``path``, with the line of that key or list entry."""
    if error.key is None:
        return document.error(error, path, place)
    names = error.key.split(".")  # "split.1.rank" is the key rank of the second entry of split
    at: KeyPath = (*path, *(int(name) if _is_index(name) else name for name in names))
    given = table.get(error.key)
    if isinstance(given, list) and error.value in given:
        at = (*at, given.index(error.value))
    words = "".join(f" {int(name) + 1}" if _is_index(name) else f", {name}" for name in names)
    return document.error(error, at, f"{place}{words}")


def _is_index(name: str) -> bool:
    return re.fullmatch("[0-9]{1,6}", name) is not None


def _recipes(document: Document) -> dict[str, Recipe]:
    """All recipes known in ``document``, those of the file it extends included."""
    inherited = _recipes(document.parent) if document.parent else {}
    table = document.data.get("recipe", {})
    if not isinstance(table, dict):
        problem = f"recipes are written as [recipe.NAME], in single brackets, got {show(table)}"
        raise document.error(PolicyError(problem, value=table), ("recipe",), "recipe")
    reader = _RecipeReader(document, table, inherited)
    return {**inherited, **{name: reader.read(name, ()) for name in table}}


_LONGEST_CHAIN = 64  # recipes of one file that extend one another


@dataclass(frozen=True)
class _RecipeReader:
    document: Document
    table: dict[str, Any]  # the file's [recipe]
    inherited: dict[str, Recipe]
    _done: dict[str, tuple[Recipe, int]] = field(default_factory=dict)  # and how many of this file it is built on

    def read(self, name: str, chain: tuple[str, ...]) -> Recipe:
        """The recipe ``name`` of this file; ``chain`` holds the recipes of this file that extend it."""
        if name not in self._done:
            recipe = self._read(name, chain)
            given = self.table[name]
            extends = given if isinstance(given, str) else given.get("extends")
            below = self._done[extends][1] + 1 if extends != name and extends in self._done else 0
            self._done[name] = recipe, below
        return self._done[name][0]

    def _read(self, name: str, chain: tuple[str, ...]) -> Recipe:
        path: KeyPath = ("recipe", name)
        place = f"recipe {name}"
        given = self.table[name]
        if isinstance(given, str):
            given = {"extends": given}
            extends_path = path
        else:
            extends_path = (*path, "extends")
        if name == HIGH:
            problem = 'the recipe "high" is built in and cannot be redefined; choose another name'
            raise self.document.error(PolicyError(problem, value=name), path, place)
        if name in RECIPE_KEYS:
            problem = f"{name} is a key of a recipe, not a recipe's name: write [recipe.NAME] and below it {name}"
            raise self.document.error(PolicyError(problem, value=name), path, place)
        if not isinstance(given, dict):
            problem = f"a recipe must be a table, or the name of another recipe, got {show(given)}"
            raise self.document.error(PolicyError(problem, value=given), path, place)
        for key in given:
            if key not in RECIPE_KEYS:
                raise self.document.error(unknown_key("a recipe", key, RECIPE_KEYS), (*path, key), f"{place}, {key}")
        treatments: dict[str, Treatment] = {}
        if "extends" in given:
            try:
                base = self._base(name, given["extends"], chain)
            except PolicyError as error:
                if error.file:
                    raise
                raise self.document.error(error, extends_path, f"{place}, extends") from None
            treatments = {operand: base.treatment(operand) for operand in OPERANDS}
        for operand in OPERANDS:
            if operand in given:
                treatments[operand] = self._treatment(given[operand], (*path, operand), f"{place}, {operand}")
        missing = [operand for operand in OPERANDS if operand not in treatments]
        if missing:
            problem = (
                f"{', '.join(missing)} missing; a recipe gives weight, activation and gradient (each "
                'a format, a table, or "high"), or takes those left out from another: extends = "NAME"'
            )
            raise self.document.error(PolicyError(problem, allowed=RECIPE_KEYS), path, place)
        try:
            return Recipe(name=name, **treatments)
        except PolicyError as error:
            raise self.document.error(error, path, place) from None

    def _base(self, name: str, extends: object, chain: tuple[str, ...]) -> Recipe:
        """The recipe that ``name`` extends; its own name stands for the one it replaces."""
        chain = (*chain, name)
        if not isinstance(extends, str):
            raise PolicyError(f"extends must be the name of a recipe, got {show(extends)}", value=extends)
        if extends == HIGH:
            return HIGH_RECIPE
        if extends != name and extends in self.table:
            if extends in chain:
                circle = " -> ".join((*chain[chain.index(extends) :], extends))
                raise PolicyError(f"recipes extend each other in a circle: {circle}", value=extends)
            below = self._done[extends][1] + 1 if extends in self._done else 0
            if len(chain) + below >= _LONGEST_CHAIN:
                raise PolicyError(f"more than {_LONGEST_CHAIN} recipes extend one another", value=extends)
            return self.read(extends, chain)
        base = self.inherited.get(extends) or _stock_recipe(extends)
        if base is None:
            known = [known for known in _known({**self.inherited, **self.table}) if known != name]
            raise unknown_name(extends, known)
        return base

    def _treatment(self, given: object, path: KeyPath, place: str) -> Treatment:
        if isinstance(given, str):
            given = {"format": given}
        if not isinstance(given, dict):
            problem = f"a treatment must be a format's name or a table, got {show(given)}"
            raise self.document.error(PolicyError(problem, value=given), path, place)
        for key in given:
            if key not in TREATMENT_KEYS:
                error = unknown_key("a treatment", key, TREATMENT_KEYS)
                raise self.document.error(error, (*path, key), f"{place}, {key}")
        if not self.document.trust:
            self._refuse_code(given.get("split"), path, place)
        if "format" not in given:
            problem = 'a treatment must have a format, such as format = "nvfp4"'
            raise self.document.error(PolicyError(problem, allowed=("format",)), path, f"{place}, format")
        try:
            return Treatment(**given)
        except PolicyError as error:
            raise _placed(error, self.document, path, place, given) from None

    def _refuse_code(self, given: object, path: KeyPath, place: str) -> None:
        """Raises for a split that names a class, whose module would be imported."""
        for index, step in enumerate(given if isinstance(given, list) else [given]):
            kind = step.get("kind") if isinstance(step, dict) else step
            if isinstance(kind, str) and ":" in kind:
                at: KeyPath = (*path, "split", index) if isinstance(given, list) else (*path, "split")
                at = (*at, "kind") if isinstance(step, dict) else at
                problem = (
                    f"{show(kind)} names code, which loading the policy would import and run; it is refused because "
                    "the policy is loaded with trust=False: give trust=True if you trust the file and that module"
                )
                raise self.document.error(PolicyError(problem, value=kind), at, f"{place}, split")


def _known(recipes: dict[str, Any]) -> list[str]:
    """Names of all recipes that a file with ``recipes`` can use: these, "high", and those of the presets."""
    return list(dict.fromkeys([*recipes, HIGH, *_presets_by_recipe()]))


def _stock_recipe(name: str) -> Recipe | None:
    """The recipe ``name`` of whichever preset has one; those of several presets are the same."""
    preset = _presets_by_recipe().get(name)
    return None if preset is None else _preset_recipes(preset)[name]


# The package's own files, which do not change while it runs.
@cache
def _preset(name: str) -> Document:
    return read_reference(preset_path(name), trust=False)


@cache
def _presets_by_recipe() -> dict[str, str]:
    """For each recipe of the presets, the first that has it."""
    return {name: preset for preset in reversed(presets()) for name in _recipe_names(_preset(preset))}


def _recipe_names(document: Document) -> list[str]:
    """Names of the recipes of a file and of all that it extends."""
    return [name for each in _in_order(document) for name in each.data.get("recipe", {})]


@cache
def _preset_recipes(name: str) -> dict[str, Recipe]:
    return _recipes(_preset(name))
