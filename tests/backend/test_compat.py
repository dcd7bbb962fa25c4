"""The private torch API exists, and compat is the only module that reaches for it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import metis_compile
from metis_compile import compat

ROOT = Path(metis_compile.__file__).parent


def test_every_symbol_imports_and_is_documented() -> None:
    for name in compat.__all__:
        symbol = getattr(compat, name)
        own = getattr(symbol, "__module__", "").startswith("metis_compile")
        assert own or f"{name}" in compat.__doc__, f"{name} has no row in compat's table"


def private_uses(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
        else:
            continue
        found += [f"{path.relative_to(ROOT)}:{node.lineno} {n}" for n in names if re.match(r"torch\._(?!_)", n)]
    return found


def test_private_torch_is_used_nowhere_else() -> None:
    sources = [p for folder in (ROOT, ROOT / "passes", ROOT / "kernels") for p in folder.rglob("*.py")]
    assert len(sources) > 30
    found = [use for path in sources if path.name != "compat.py" for use in private_uses(path)]
    assert found == []
