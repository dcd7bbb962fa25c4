"""The user's reference says what the code does."""

import re
from pathlib import Path

import pytest

from metis_compile.numerics.formats import FORMATS, ROUNDINGS
from metis_compile.policy import DTYPES, GEMMS, OPERANDS, OPS, Policy, PolicyError
from metis_compile.policy.loading import RULE_KEYS
from metis_compile.policy.treatment import TREATMENT_KEYS

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "policy-files.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize("block", [block for language, block in BLOCKS if language == "toml"])
def test_every_file_shown_loads(block: str) -> None:
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
    assert set(rows["scale_mode"]) == {mode for format in formats for mode in format.scale_modes}
