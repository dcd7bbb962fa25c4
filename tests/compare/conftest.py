from collections.abc import Callable
from pathlib import Path

import pytest

from metis_compile.train.settings import Settings

TINY = {"steps": 6, "width": 16, "layers": 1, "heads": 2, "context": 16, "batch": 2}


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., Settings]:
    path = tmp_path / "text.txt"
    path.write_text("all work and no play makes jack a dull boy. " * 200)
    return lambda **changes: Settings(**({"text": str(path), **TINY} | changes))


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here and in the processes started from here, torch.compile does nothing."""
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
