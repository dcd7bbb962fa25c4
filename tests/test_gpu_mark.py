"""`-m gpu` runs every test that needs a GPU, and without a GPU each says why it is skipped."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import on_gpu
import pytest
import torch

TESTS = [path for path in Path(__file__).parent.rglob("test_*.py") if path != Path(__file__)]


@pytest.mark.parametrize("there", [True, False])
def test_the_mark_skips_where_there_is_no_gpu(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    marked, other = (
        pytest.Function.from_parent(request.node.parent, name=name, callobj=lambda: None)
        for name in ("marked", "other")
    )
    marked.add_marker("gpu")
    on_gpu.pytest_collection_modifyitems([marked, other])
    skips: list[Any] = [mark.kwargs for mark in marked.iter_markers("skip")]
    assert skips == ([] if there else [{"reason": "needs a CUDA GPU, and torch finds none"}])
    assert not list(other.iter_markers("skip"))


def test_no_test_is_skipped_another_way() -> None:
    for path in TESTS:
        assert not re.search(r"skip\w*\([^)]*cuda\.is_available", path.read_text()), path


def test_what_moves_to_a_gpu_is_marked() -> None:
    for path in TESTS:
        text = path.read_text()
        assert "mark.gpu" in text or not re.search(r"""\.cuda\(\)|torch\.\w+\([^"\n]*device="cuda"\)""", text), path
