"""Which GPU kernels are made for."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from metis_compile.kernels.capability import capability_of, copies_scales

CPU = torch.device("cpu")


def test_of_what_triton_makes_kernels_for(triton_on_cpu: Any) -> None:
    for capability in (90, 100, 120):
        triton_on_cpu.capability = capability
        assert capability_of(CPU) == capability


def test_without_a_driver_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoDriver:
        def get_current_target(self) -> None:
            raise RuntimeError("0 active drivers")

    monkeypatch.setattr(pytest.importorskip("triton").runtime.driver, "_active", NoDriver())
    assert capability_of(CPU) == 0


@pytest.mark.gpu
def test_of_a_gpu() -> None:
    major, minor = torch.cuda.get_device_capability()
    assert capability_of(torch.device("cuda")) == capability_of(torch.device("cuda", 0)) == 10 * major + minor


def test_where_scales_are_copied() -> None:
    assert [c for c in (0, 80, 89, 90, 100, 103, 110, 120, 121) if copies_scales(c)] == [100, 103]
