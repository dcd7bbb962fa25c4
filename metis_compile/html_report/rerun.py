"""How to run it again: the command, the versions, the machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from metis_compile.html_report.blocks import Block, Code, Facts, Section

__all__ = ["rerun_section"]


def rerun_section(command: str, machine: Mapping[str, Any], facts: Sequence[tuple[str, str]] = ()) -> Section:
    """machine: of `measure.machine`. facts: what else has to be the same, such as the text that was trained on."""
    names = {
        "torch": "torch",
        "python": "Python",
        "processor": "processor",
        "gpu": "GPU",
        "threads": "threads",
        "date": "date",
    }
    found = [(shown, str(machine[name])) for name, shown in names.items() if machine.get(name) is not None]
    if machine.get("commit"):
        changed = " and changes that are not in it" if machine.get("dirty") else ""
        found.append(("commit", f"{str(machine['commit'])[:12]}{changed}"))
    blocks: list[Block] = [Code(text=command), Facts(facts=[*facts, *found])]
    return Section(id="rerun", title="Run it again", blocks=blocks)
