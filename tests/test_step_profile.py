"""What a profile of a step counts, and how it is shown."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import step_profile

from metis_compile.kernels.cpu import launch
from metis_compile.train.settings import Settings


def test_a_step_falls_into_kinds() -> None:
    before = {name: getattr(launch, name) for name in step_profile.CALLS}
    settings = Settings(width=32, layers=1, heads=2, context=32, batch=2, device="cpu", dtype="float32")
    found = step_profile.profiled("averis", settings, steps=2)
    assert {name: getattr(launch, name) for name in step_profile.CALLS} == before
    kinds = found["kinds"]
    assert kinds["quantize"] > 0
    assert kinds["attention"] > 0
    assert sum(kinds.values()) == found["seconds"] or abs(sum(kinds.values()) / found["seconds"] - 1) < 1e-6
    # both ways: the inputs of q, k and v (one), of the output, up and down; six weights; six gradients
    assert found["calls"]["quantize"] == 2 * (4 + 6 + 6)
    assert found["bytes"]["quantize"] > 0


def test_an_operator_within_another_is_not_counted_twice() -> None:
    outer: Any = SimpleNamespace(name="metis::power_step", cpu_parent=None)
    between = SimpleNamespace(name="aten::linear", cpu_parent=outer)
    inner = SimpleNamespace(name="aten::mm", cpu_parent=between)
    assert step_profile.inside(inner)
    assert not step_profile.inside(outer)


def test_the_table() -> None:
    row = {"policy": "p", "seconds": 0.5, "kinds": {"quantize": 0.1, "attention": 0.15, step_profile.REST: 0.25}}
    numbers = {"copy_bytes_per_second": 1e9, "rows": [{**row, "bytes": {"quantize": 2e7}}]}
    assert step_profile.table(numbers).splitlines()[2:] == [
        "| attention | 150 |",
        "| quantize | 100 (20) |",
        "| Inductor's kernels and the rest | 250 |",
        "| a step's forward and backward | 500 |",
    ]
