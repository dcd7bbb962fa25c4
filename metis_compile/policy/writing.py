"""Writing a policy as TOML that loads to an equal policy."""

from collections.abc import Sequence

import tomlkit
from tomlkit.items import Array, InlineTable, String, Table

from metis_compile.policy.rule import Rule
from metis_compile.policy.splits import split_tables
from metis_compile.policy.treatment import HIGH, OPERANDS, TREATMENT_KEYS, Recipe, Treatment

_LIST_KEYS = ("module", "kind", "blocks", "op", "gemm", "operand", "dtype")


def to_toml(name: str, recipes: Sequence[Recipe], rules: Sequence[Rule]) -> str:
    """A policy file that extends nothing: all recipes in full, then all rules with their origin."""
    document = tomlkit.document()
    if recipes:
        table = tomlkit.table()
        for recipe in recipes:
            table.add(recipe.name, HIGH if _leaves_all_high(recipe) else _recipe(recipe))
        document.add("recipe", table)
    if rules:
        array = tomlkit.aot()
        for rule in rules:
            array.append(_rule(rule, name))
        document.add("rule", array)
    return tomlkit.dumps(document)


def _leaves_all_high(recipe: Recipe) -> bool:
    return all(treatment.format == HIGH for treatment in recipe.treatments)


def _recipe(recipe: Recipe) -> Table:
    table = tomlkit.table()
    for operand in OPERANDS:
        table.add(operand, _treatment(recipe.treatment(operand)))
    return table


def _treatment(treatment: Treatment) -> String | InlineTable:
    if treatment.format == HIGH:
        return tomlkit.string(HIGH)
    table = tomlkit.inline_table()
    for key in TREATMENT_KEYS:
        value = getattr(treatment, key)
        if value is not None:
            table.append(key, _split(treatment) if key == "split" else value)
    return table


def _split(treatment: Treatment) -> InlineTable | Array:
    steps = []
    for settings in split_tables(treatment.split):
        step = tomlkit.inline_table()
        for name, value in settings.items():
            step.append(name, list(value) if isinstance(value, tuple) else value)
        steps.append(step)
    if len(steps) == 1:
        return steps[0]
    array = tomlkit.array()
    for step in steps:
        array.append(step)
    return array


def _rule(rule: Rule, name: str) -> Table:
    table = tomlkit.table()
    if rule.source and rule.source != name:
        table.add(tomlkit.comment(f"from {rule.source.splitlines()[0]}, rule {rule.number}"))
    for key in _LIST_KEYS:
        entries = getattr(rule, key)
        if entries is not None and len(entries) == 1:
            table.add(key, entries[0])
        elif entries is not None:
            table.add(key, tomlkit.item(list(entries)).multiline(sum(map(len, entries)) > 80))
    if rule.has_weight is not None:
        table.add("has_weight", rule.has_weight)
    if rule.when is not None:
        table.add("when", rule.when)
    table.add("recipe", rule.recipe)
    return table
