"""The numbers in docs/distributed.md are those that the tests in this folder hold, and its links lead somewhere."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import metis_compile

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "distributed.md").read_text()


def value_of(name: str) -> Any:
    """A constant of test_equals_one_process.py."""
    tree = ast.parse((Path(__file__).parent / "test_equals_one_process.py").read_text())
    (found,) = [n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == name]
    return ast.literal_eval(found)


def test_the_bounds_are_those_of_the_tests() -> None:
    bounds = value_of("BOUNDS")
    assert f"({bounds['high']:.0e}".replace("e-0", "e-") in TEXT
    assert f"less than {100 * bounds['mxfp8']:.1f} %" in TEXT
    assert f"less than {100 * bounds['nvfp4']:.0f} %" in TEXT


def test_the_policies_are_those_of_the_tests() -> None:
    local, shards = (" and ".join(f"`{name}`" for name in value_of(name)) for name in ("LOCAL", "SHARDS"))
    assert re.search(rf"tested with\s{local}\)", TEXT)
    assert re.search(rf"tested bit for\s+bit with {shards}\)", TEXT)


def test_what_it_links_to_exists() -> None:
    links = re.findall(r"\]\(([^)#:]+)", TEXT)
    assert len(links) == 3
    assert all((ROOT / "docs" / link).exists() for link in links)


def test_what_it_calls_exists() -> None:
    for name in re.findall(r"metis_compile\.(\w+)\(", TEXT):
        assert callable(getattr(metis_compile, name)), name
