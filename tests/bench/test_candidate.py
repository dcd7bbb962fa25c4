from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from metis_compile.bench import candidate


@pytest.mark.parametrize(("there", "found"), [(None, []), (object(), [candidate.AUTOCAST])], ids=["without", "with"])
def test_autocast_is_measured_unasked_only_where_it_has_instructions(
    there: Any, found: list[str], settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidate, "bf16_gemm", lambda: there)
    console = Console(file=io.StringIO(), width=200)
    assert candidate.autocast(settings(), console) == found
    assert ("no bfloat16 instructions" in console.file.getvalue()) == (there is None)  # type: ignore[attr-defined]
