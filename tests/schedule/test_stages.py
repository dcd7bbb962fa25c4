"""A model that is trained by a schedule: each stage is its policy's, bit for bit, and resumes where it was."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import metis_compile.backend
from metis_compile import Policy, PolicyWarning, Schedule
from metis_compile.inspection.dry_run import run_eagerly
from metis_compile.policy.schedule import Stage

FIRST = Policy.from_toml(
    """
[recipe.kept]
weight = "nvfp4"
activation = { format = "nvfp4", split = { kind = "spectral", rank = 4 } }
gradient = { format = "nvfp4", rounding = "stochastic" }
[[rule]]
recipe = "kept"
""",
    name="first.toml",
)
STAGED = Schedule(stages=(Stage(policy=FIRST, until=0.5), Stage(policy=Policy.load("mxfp8"))), name="run.toml")


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.head = nn.Linear(48, 32), nn.Linear(32, 8)

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(torch.relu(self.up(x)))


def compiled(policy: Policy | Schedule) -> Any:
    torch.compiler.reset()
    return torch.compile(Model(), backend="metis", options={"policy": policy})


def step(model: Any, number: int) -> torch.Tensor:
    """One step of SGD; returns all parameters after it."""
    torch.manual_seed(100 + number)
    x = torch.randn(64, 48)
    model(x).square().mean().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.1 * parameter.grad
            parameter.grad = None
    return torch.cat([p.detach().flatten().clone() for p in model.parameters()])


@pytest.fixture(scope="module", autouse=True)
def _eagerly() -> Iterator[None]:
    """Everything but Inductor's code generation."""
    with pytest.MonkeyPatch.context() as patch:
        run = functools.partial(metis_compile.backend.compile_graph, inner_compile=run_eagerly)
        patch.setattr(metis_compile.backend, "compile_graph", run)
        yield
    torch.compiler.reset()


def test_a_summary_is_of_the_stage_that_ran_last() -> None:
    model = compiled(STAGED)
    metis_compile.advance(model, 0, steps=4)
    for number, policy, formats in ((0, "first.toml", ["nvfp4"]), (2, "mxfp8.toml", ["mxfp8", "high"])):
        metis_compile.advance(model, number)
        step(model, number)
        found = metis_compile.summary(model)
        assert (found.policy, list(found.flops)) == (policy, formats)
        assert found.linears == 2


@pytest.fixture(scope="module")
def trained() -> dict[str, Any]:
    """Four steps by the schedule, of which the third and fourth are of its second stage."""
    model = compiled(STAGED)
    found: dict[str, Any] = {"after": [], "kept": []}
    for number in range(4):
        metis_compile.advance(model, number, steps=4)
        found["after"].append(step(model, number))
        found["kept"].append(metis_compile.state_dict(model))
        if number == 1:
            found["weights"] = {name: value.clone() for name, value in model.state_dict().items()}
    return found


def test_each_stage_is_its_policys(trained: dict[str, Any]) -> None:
    model = compiled(FIRST)
    for number in (0, 1):
        assert torch.equal(step(model, number), trained["after"][number])
    later = compiled(STAGED.stages[1].policy)
    later.load_state_dict(trained["weights"])
    for number in (2, 3):
        assert torch.equal(step(later, number), trained["after"][number])
    assert not torch.equal(step(model, 2), trained["after"][2])


def test_a_run_that_resumes_is_in_the_right_stage(trained: dict[str, Any]) -> None:
    model = compiled(STAGED)
    model.load_state_dict(trained["weights"])
    metis_compile.advance(model, 2, steps=4)
    assert torch.equal(step(model, 2), trained["after"][2])
    metis_compile.advance(model, 0)
    with pytest.raises(RuntimeError, match=r"went back to stage 1 of run.toml, and was compiled for stage 2 on"):
        step(model, 0)


def test_the_switch_is_in_the_log_and_a_run_that_never_advances_is_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    schedule = Schedule(stages=(Stage(policy=Policy.load("mxfp8"), until=2), Stage(policy=Policy.load("high"))))
    model = compiled(schedule)
    step(model, 0)
    with pytest.warns(PolicyWarning, match=r"stays in its first stage: call metis_compile.advance"):
        step(model, 1)
    with caplog.at_level(logging.INFO, "metis_compile"):
        for number in (1, 2, 3):
            metis_compile.advance(model, number)
            step(model, number)
    said = [r.getMessage() for r in caplog.records if "stage" in r.getMessage()]
    assert said == ["metis: step 2: schedule schedule, stage 2 of 2, policy high.toml"]


def test_what_advance_takes() -> None:
    with pytest.raises(TypeError, match=r"advance takes the model, an nn\.Module, got function"):
        metis_compile.advance(lambda x: x, 0)  # type: ignore[arg-type]
    for given in ({"step": -1}, {"step": 1.5}, {"step": True}, {"step": 0, "steps": -1}):
        with pytest.raises(ValueError, match="must be a whole number of at least 0"):
            metis_compile.advance(Model(), **given)  # type: ignore[arg-type]


def test_explain_and_export_are_of_one_policy() -> None:
    for function in (metis_compile.explain, metis_compile.export_mlir):
        with pytest.raises(ValueError, match=r"run.toml is a schedule: give the policy of one of its stages"):
            function(Model(), torch.randn(4, 48), policy=STAGED)  # type: ignore[operator]
