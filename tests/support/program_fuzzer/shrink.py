"""Drops what a failing case does not need, as long as it fails in the same way."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from program_fuzzer.cases import Case
from program_fuzzer.program import HEADER, Program, Statement

MOST_TRIES = 80


def shrink(case: Case, failure: str) -> tuple[Case, str]:
    """The smallest case found, and how it fails."""
    tries, kind = 0, _kind(failure)
    while True:
        for smaller in _smaller(case):
            tries += 1
            if tries > MOST_TRIES:
                return case, failure
            found = smaller.failure()
            if found is not None and _kind(found) == kind:
                case, failure = smaller, found
                break
        else:
            return case, failure


def _kind(failure: str) -> str:
    return re.split(r"[:(]", failure)[0]


def _smaller(case: Case) -> Iterator[Case]:
    program = case.program
    if program.dynamic:
        yield replace(case, program=replace(program, dynamic=False))
    if program.patterns:
        yield replace(case, program=replace(program, patterns=False))
    for statements in _fewer(program):
        yield replace(case, program=replace(program, statements=statements).cleaned())
    shapes = _shapes(program)
    for at, statement in enumerate(program.statements):
        if statement.target in shapes and len(program.statements) > 1:
            yield replace(case, program=_as_input(program, at, shapes[statement.target]))
    for at, statement in enumerate(program.statements):
        for code in _shorter(statement):
            changed = [*program.statements]
            changed[at] = replace(statement, code=code)
            yield replace(case, program=replace(program, statements=tuple(changed)).cleaned())
    for name in sorted(program.tracked):
        yield replace(case, program=replace(program, tracked=program.tracked - {name}))
    if program.dtype != "float32":
        yield replace(case, program=replace(program, dtype="float32"))
    for policy in _simpler(case.policy):
        yield replace(case, policy=policy)


def _fewer(program: Program) -> Iterator[tuple[Statement, ...]]:
    """Without one statement and all that needs it; the last first."""
    for dropped in reversed(program.statements):
        gone, kept = {dropped.target}, []
        for statement in program.statements:
            if statement is dropped or statement.reads & gone:
                gone.add(statement.target)
            else:
                kept.append(statement)
        if kept:
            yield tuple(kept)


def _shapes(program: Program) -> dict[str, tuple[int, ...]]:
    """Of what each statement sets, as far as they run one by one."""
    model, inputs = program.build()
    scope: dict[str, Any] = {"self": model}
    exec(HEADER, scope)
    scope |= dict(zip(program.inputs, inputs(), strict=True))
    try:
        with torch.no_grad():
            for statement in program.statements:
                exec(statement.code, scope)
    except Exception:
        return {}
    return {s.target: tuple(scope[s.target].shape) for s in program.statements}


def _as_input(program: Program, at: int, shape: tuple[int, ...]) -> Program:
    target = program.statements[at].target
    statements = program.statements[:at] + program.statements[at + 1 :]
    code = f"randn({at}, {', '.join(map(str, shape))})"
    changed = replace(
        program,
        statements=statements,
        inputs=program.inputs | {target: code},
        tracked=program.tracked | {target},
        dynamic=False,
    )
    return changed.cleaned()


def _shorter(statement: Statement) -> Iterator[str]:
    """Without its last line, without a view of a value."""
    first, *rest = statement.code.split("\n")
    if rest and first.startswith(f"{statement.target} = "):
        yield "\n".join([first, *rest[:-1]])
    for view in re.finditer(r"(?<=[vx]\d)(\.\w+\([^()]*\)|\.mT|\[[^\[\]]*\])+", statement.code):
        yield statement.code[: view.start()] + statement.code[view.end() :]


def _simpler(policy: str) -> Iterator[str]:
    for rule in re.finditer(r"\[\[rule\]\]\n[^\[]*", policy):
        yield policy[: rule.start()] + policy[rule.end() :]
    for line in re.finditer(r"^(weight|activation|gradient) = \{.*\}$", policy, re.MULTILINE):
        yield policy[: line.start()] + f'{line[1]} = "high"' + policy[line.end() :]
    for part in re.finditer(r', (hadamard|split|scale_mode|four_over_six) = ("\w+"|\[.*?\]|\{[^{}]*\})', policy):
        yield policy[: part.start()] + policy[part.end() :]
