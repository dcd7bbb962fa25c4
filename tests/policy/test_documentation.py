"""The user's reference says what the code does."""

import re
import sys
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from graphs import eager_backend
from torch import nn

from metis_compile.conditioning import KINDS, split
from metis_compile.conditioning.hadamard import SIGNS, SIZE, SIZES
from metis_compile.numerics import QuantSpec, fake_quantize
from metis_compile.numerics.estimator import ESTIMATORS
from metis_compile.numerics.formats import FORMATS, ROUNDINGS
from metis_compile.policy import DTYPES, GEMMS, OPERANDS, OPS, Policy, PolicyError, Schedule
from metis_compile.policy.kinds import KINDS as PRODUCT_KINDS
from metis_compile.policy.loading import RULE_KEYS
from metis_compile.policy.treatment import TREATMENT_KEYS

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "policy-files.md").read_text()
NVFP4 = QuantSpec.make("nvfp4")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize("block", [block for language, block in BLOCKS if language == "toml"])
def test_every_file_shown_loads(block: str) -> None:
    if "[[stage]]" in block:
        assert Schedule.from_toml(block, folder=ROOT / "examples" / "policies").stages
        return
    policy = Policy.from_toml(block)
    assert policy.recipes or policy.rules


def test_the_python_shown_runs() -> None:
    (block,) = (block for language, block in BLOCKS if language == "python" and "from_toml" in block)
    exec(block, {})


def test_the_message_shown_is_the_message() -> None:
    (shown,) = (block for language, block in BLOCKS if language == "text")
    text = "\n[[rule]]\nrecipe = 'high'\n\n[[rule]]\nrecipe = 'high'\ngemm = 'dgard'\n"
    with pytest.raises(PolicyError) as caught:
        Policy.from_toml(text, name="run.toml")
    assert str(caught.value) == shown.strip()


def table(header: str) -> dict[str, list[str]]:
    """Of the table under ``header``: the names in quotes of each row, by the first of them."""
    body = TEXT.split(header)[1].split("\n\n")[0]
    rows = [re.findall(r"`\"?([^`\"]+)\"?`", row) for row in body.split("\n")[2:]]
    return {row[0]: row[1:] for row in rows}


def test_the_table_of_rule_keys_is_complete() -> None:
    rows = table("| key | value | matches |")
    assert list(rows) == list(RULE_KEYS)
    assert tuple(rows["kind"]) == PRODUCT_KINDS
    assert tuple(rows["op"]) == OPS
    assert tuple(rows["gemm"]) == GEMMS
    assert tuple(rows["operand"]) == OPERANDS
    assert tuple(rows["dtype"]) == DTYPES


def test_the_table_of_treatment_keys_is_complete() -> None:
    rows = table("| key | values | default |")
    assert tuple(rows) == TREATMENT_KEYS
    formats = FORMATS.values()
    assert rows["format"] == ["high", *FORMATS]
    assert set(rows["block"]) == {block for format in formats for block in format.blocks}
    assert rows["rounding"] == [*ROUNDINGS, "nearest"]
    assert set(rows["guard"]) == {guard for format in formats for guard in format.guards}
    assert set(rows["four_over_six"]) == {
        *(select for format in formats for rounding in ROUNDINGS for select in format.selects(rounding)),
        "true",
        "false",
    }
    assert rows["split"] == [*KINDS, "package.module:Class"]
    assert rows["hadamard"] == [*SIGNS, "true", "false", "false"]
    assert rows["hadamard_size"] == [*map(str, SIZES), "hadamard", str(SIZE)]
    assert rows["estimator"] == list(ESTIMATORS)
    assert rows["hold_amax"] == ["tensor"]
    assert set(rows["scale_mode"]) == {
        *(mode for format in formats for mode in format.scale_modes),
        *(mode for format in formats for block in format.blocks for mode in format.optional_scale_modes(block)),
    }


def test_the_table_of_split_settings_is_complete_and_gives_the_defaults() -> None:
    body = TEXT.split("| setting | of | meaning | default |")[1].split("\n\n")[0]
    rows = [[cell.strip(" `") for cell in row.split("|")[1:-1]] for row in body.split("\n")[2:]]
    groups = {"all": set(KINDS), "mean, spectral": {"mean", "spectral"}, **{kind: {kind} for kind in KINDS}}
    for kind, found in KINDS.items():
        told = {row[0]: row[3] for row in rows if kind in groups[row[1]]}
        assert sorted(told) == sorted(field.name for field in fields(found)), kind
        for name, default in told.items():
            assert str(getattr(found(), name)).lower() == default, name


@pytest.fixture
def users_own(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The page's class, in a module that can be imported."""
    module = ModuleType("somebodys_splits")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    module.torch = torch  # type: ignore[attr-defined]
    for language, block in BLOCKS:
        if language == "python" and "class " in block:
            exec(block, module.__dict__)
    return module.LargestColumns  # type: ignore[attr-defined]


def test_the_users_own_split_works(users_own: Any) -> None:
    x = torch.randn(9, 20)
    residual, left, right = split(x, users_own(count=3))
    assert torch.allclose(residual + left @ right, x, atol=1e-5)
    assert (residual == 0).all(0).sum() == 3
    assert split(x.bfloat16(), users_own(count=3)).residual.dtype == torch.float32


def test_one_that_draws_stands_before_a_spectral_split(users_own: Any) -> None:
    """In the graph too: it says nothing of a seed, and is given one; another in each step."""
    steps = '["somebodys_splits:RandomDirection", { kind = "spectral", rank = 2 }]'
    operand = f'{{ format = "nvfp4", split = {steps} }}'
    policy = Policy.from_toml(
        f'[recipe.own]\nweight = "nvfp4"\nactivation = {operand}\ngradient = "high"\n[[rule]]\nrecipe = "own"\n'
    )
    model, x = nn.Linear(64, 32, bias=False), torch.randn(40, 64)
    compiled = torch.compile(model, backend=eager_backend(policy))
    results = [compiled(x) for _ in range(3)]
    results[0].sum().backward()
    exact = model(x)
    assert all((y - exact).norm() < 0.2 * exact.norm() for y in results)
    assert not torch.equal(results[1], results[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_trains_with_it(users_own: Any, dtype: torch.dtype) -> None:
    operand = '{ format = "nvfp4", split = { kind = "somebodys_splits:LargestColumns", count = 3 } }'
    policy = Policy.from_toml(
        f'[recipe.own]\nweight = "nvfp4"\nactivation = {operand}\ngradient = "high"\n[[rule]]\nrecipe = "own"\n'
    )
    torch.manual_seed(0)
    model = nn.Linear(64, 32, bias=False, dtype=dtype)
    x = torch.randn(40, 64, dtype=dtype) * torch.where(torch.arange(64) % 20 == 3, 30, 1).to(dtype)
    y = torch.compile(model, backend="metis", options={"policy": policy})(x)
    g = torch.randn(40, 32, dtype=dtype)
    y.backward(g)
    weight, x, g = model.weight.detach().float(), x.float(), g.float()
    residual, left, right = split(x, users_own(count=3))
    fprop = fake_quantize(residual, NVFP4, 1) @ fake_quantize(weight, NVFP4, 1).T + left @ (right @ weight.T)
    wgrad = g.T @ fake_quantize(residual, NVFP4, 0) + (g.T @ left) @ right
    assert model.weight.grad is not None
    # the sums are float32's, to their order; what is returned is rounded to the model's dtype
    tolerance = 2.0**-7 if dtype == torch.bfloat16 else 1e-5
    for actual, expected in ((y.detach(), fprop), (model.weight.grad, wgrad)):
        assert actual.dtype == dtype
        assert float((actual.float() - expected).abs().max()) <= tolerance * float(expected.abs().max())
