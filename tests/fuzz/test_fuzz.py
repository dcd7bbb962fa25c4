"""Random small programs under random policies: the first cases of `make fuzz`, and what the fuzzer itself must do."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from program_fuzzer.cases import Case, draw_case
from program_fuzzer.program import Program, Statement
from program_fuzzer.shrink import shrink
from program_fuzzer.statements import STATEMENTS

from metis_compile import Policy
from metis_compile.passes.graph.sites import Site
from metis_compile.passes.joint import resolve, rewrite
from metis_compile.passes.joint.tails import Conditioner

CASES = 60
SUPPORT = Path(__file__).parents[1] / "support"


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "metis_compile")  # policies at random leave much in high precision


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(CASES))
def test_case(seed: int) -> None:
    case = draw_case(seed)
    failure = case.failure()
    if failure is not None:
        case, failure = shrink(case, failure)
        pytest.fail(f"case {seed}: {failure}\n\n{case.script}", pytrace=False)


def test_a_number_always_stands_for_the_same_case() -> None:
    assert draw_case(7) == draw_case(7)
    assert draw_case(7) != draw_case(8)


def test_all_statements_and_dtypes_are_drawn() -> None:
    programs = [draw_case(seed).program for seed in range(300)]
    assert {kind for program in programs for kind in program.kinds} == set(STATEMENTS)
    assert {program.dtype for program in programs} == {"float32", "bfloat16", "float16", "float64"}
    assert {program.dynamic for program in programs} == {True, False}


SCALED = Program(
    inputs={"x0": "skewed(0, 20 + more, 32)"},
    tracked=frozenset({"x0"}),
    attributes={"w0": "nn.Parameter(randn(1, 32, 24) / 5)", "w1": "nn.Parameter(randn(2, 24))"},
    statements=(
        Statement(target="v0", code="v0 = x0.relu()"),
        Statement(target="v1", code="v1 = torch.addmm(self.w1, v0, self.w0, alpha=-2.0)\nv1 = torch.tanh(v1)"),
        Statement(target="v2", code="v2 = v1 * 2"),
    ),
)
PLAIN = """
[recipe.r0]
weight = { format = "nvfp4" }
activation = { format = "nvfp4" }
gradient = { format = "nvfp4" }
[[rule]]
recipe = "r0"
"""
OTHER_WEIGHTS = PLAIN.replace('"nvfp4"', '"fp8"', 1)
WGRAD_HIGH = PLAIN.replace("[[rule]]", '[[rule]]\ngemm = "wgrad"\nrecipe = "high"\n[[rule]]')
MEANS = PLAIN.replace('"nvfp4"', '"nvfp4", split = "mean"')


def _without_alpha(self, product, added, *, alpha=1, beta=1, scaled=rewrite.Rewriter._scaled):  # type: ignore[no-untyped-def]
    return scaled(self, product, added, beta=beta)


def test_what_a_case_needs_is_all_that_is_printed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of a compiler that forgets alpha, the product that has one."""
    case = Case(seed=0, oracle="splits", program=SCALED, policy=MEANS)
    assert case.failure() is None
    with monkeypatch.context() as patched:
        patched.setattr(rewrite.Rewriter, "_scaled", _without_alpha)
        failure = case.failure()
        assert failure is not None
        assert failure.startswith("Mismatch: ")
        case, failure = shrink(case, failure)
    (left,) = case.program.statements
    assert left.code.startswith("v1 = torch.addmm(")
    assert "tanh" not in left.code
    (tmp_path / "case.py").write_text(case.script)
    path = os.pathsep.join([str(SUPPORT), str(SUPPORT.parents[1])])
    ran = subprocess.run(
        [sys.executable, tmp_path / "case.py"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert ran.stdout == "all holds\n", ran.stderr


def _weight_as_activation(site: Site, policy: Policy, resolved=resolve.resolve_site) -> None:  # type: ignore[no-untyped-def]
    roles = [operand.role for operand in site.operands]
    for operand in site.operands:
        operand.role = "activation" if operand.role == "weight" else operand.role
    resolved(site, policy)
    for operand, role in zip(site.operands, roles, strict=True):
        operand.role = role


def _wgrad_as_dgrad(site: Site, policy: Policy, resolved=resolve.resolve_site) -> None:  # type: ignore[no-untyped-def]
    gemm, site.gemm = site.gemm, "dgrad" if site.gemm == "wgrad" else site.gemm
    resolved(site, policy)
    site.gemm = gemm


@pytest.mark.parametrize(
    ("oracle", "policy", "of", "name", "broken"),
    [
        ("splits", MEANS, Conditioner, "tails", lambda self, left, right: []),
        ("splits", MEANS, Conditioner, "_vanishes", staticmethod(lambda left, right, split: True)),
        ("nearest", OTHER_WEIGHTS, resolve, "resolve_site", _weight_as_activation),
        ("nearest", WGRAD_HIGH, resolve, "resolve_site", _wgrad_as_dgrad),
        ("anything", MEANS, rewrite.Rewriter, "_scaled", _without_alpha),
    ],
    ids=["tails dropped", "tails taken for zero", "roles mixed up", "products mixed up", "alpha forgotten"],
)
def test_a_broken_compiler_fails(
    oracle: str, policy: str, of: object, name: str, broken: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(seed=0, oracle=oracle, program=SCALED, policy=policy)
    assert case.failure() is None
    monkeypatch.setattr(of, name, broken)
    failure = case.failure()
    assert failure is not None
    assert failure.startswith("Mismatch: ")
