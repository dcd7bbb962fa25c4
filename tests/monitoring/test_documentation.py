"""docs/monitor.md: its code runs, and its table of fields is that of the records."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from trainer_runs import eagerly

from metis_compile.monitoring import records
from metis_compile.statistics import FIELDS

__all__ = ["eagerly"]

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "monitor.md").read_text()


@pytest.mark.usefixtures("eagerly")
def test_its_code_runs_and_its_fields_are_those_of_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    for code in re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL):
        exec(compile(code, "monitor.md", "exec"), namespace)
    namespace["monitor"].close()
    found = [json.loads(line) for line in Path("statistics.jsonl").read_text().splitlines()]
    names = {name for record in found for name in record}
    table = {name for row in re.findall(r"^\| (`.*?) \|", TEXT, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    assert table | {"operand"} == names
    documented = set(re.findall(r"`(\w+)`", records.__doc__ or ""))
    assert names - set(FIELDS) <= documented
    (shown,) = [json.loads(text) for text in re.findall(r"^```json\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)]
    assert set(shown) == max((set(record) for record in found), key=len)


def test_what_it_links_to_exists() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", TEXT):
        assert (ROOT / "docs" / target).exists(), target
