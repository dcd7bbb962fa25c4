"""What docs/integrations.md says of versions and files is so."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "integrations.md").read_text()


def test_the_versions_are_those_that_are_tested() -> None:
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    for name in ("accelerate", "transformers", "peft", "trl", "lightning"):
        (version,) = re.findall(rf"{name} (\d+\.\d+)[ ,.]", TEXT)
        assert pins[name].startswith(f"{version}."), name


def test_what_it_links_to_exists() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", TEXT)
    assert links
    assert all((ROOT / "docs" / link).exists() for link in links)
