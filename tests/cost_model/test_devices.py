"""Devices by name and from files, and what a wrong one says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from metis_compile.cost_model.devices import DEVICES, Device, DeviceError, find_device

VALUES: dict[str, Any] = {"rates": {"float32": 1e12, "bfloat16": 2e12}, "bandwidth": 1e11}


@pytest.mark.parametrize("name", ["b200", "B200", "rtx5090", "RTX 5090"])
def test_a_device_by_name(name: str) -> None:
    assert find_device(name) is DEVICES["".join(name.lower().split())]


@pytest.mark.parametrize("device", DEVICES.values(), ids=list(DEVICES))
def test_every_device_names_its_source_and_is_faster_in_fewer_bits(device: Device) -> None:
    assert device.source
    assert device.rate("float32") < device.rate("bfloat16") < device.rate("fp8")
    assert device.rate("fp4") >= device.rate("bfloat16")


def test_what_a_device_has_no_instructions_for_runs_in_bfloat16() -> None:
    hopper = DEVICES["h100"]
    assert hopper.rate("fp4") == hopper.rate("mxfp8") == hopper.rate("bfloat16")


def test_float32_is_tf32_where_torch_is_told_so() -> None:
    device = DEVICES["h100"]
    assert device.rate("float32") == device.rates["float32"]
    torch.set_float32_matmul_precision("high")
    try:
        assert device.rate("float32") == device.rates["tf32"]
    finally:
        torch.set_float32_matmul_precision("highest")
    assert device.rate("tf32x3") == device.rates["tf32"] / 3


def test_a_kernel_takes_as_long_as_what_it_waits_for() -> None:
    device = Device(name="d", **VALUES, start=1e-6)
    assert device.seconds("bfloat16", 4e12, 1e10) == 2 + 1e-6  # calculates
    assert device.seconds("bfloat16", 4e12, 1e12) == 10 + 1e-6  # reads and writes
    assert device.seconds("bfloat16", 4e12, 1e12, is_part=True) == 10


def test_a_device_of_a_file(tmp_path: Path) -> None:
    toml = tmp_path / "mine.toml"
    toml.write_text("bandwidth = 1e11\nstart = 2e-6\n[rates]\nfloat32 = 1e12\nbfloat16 = 2e12\n")
    found = find_device(str(toml))
    assert (found.name, found.start, found.autocast, found.rate("bfloat16")) == ("mine", 2e-6, False, 2e12)
    written = tmp_path / "written.json"
    written.write_text(json.dumps({"device": found.to_dict(), "measured": {"threads": 2}}))
    assert find_device(str(written)) == found


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("b20", "there is no device 'b20'; there are h100, h200, b200, b300, rtx5090, and .json or .toml files"),
        ("b20", "did you mean 'b200'?"),
        ("h10", "did you mean 'h100'?"),
        (3, "must be a name or a file, got int"),
        ("nowhere.toml", "can't be read"),
    ],
)
def test_a_device_that_is_none(device: Any, said: str) -> None:
    with pytest.raises(DeviceError) as error:
        find_device(device)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bandwith": 1.0}, "unknown key 'bandwith'; did you mean 'bandwidth'?"),
        ({"bandwidth": 0}, "bandwidth of device 'd' must be a number above 0, got 0"),
        ({"rates": {"float32": 1e12}}, "must have the rates float32 and bfloat16"),
        ({"rates": {**VALUES["rates"], "fp5": 1e12}}, "has a rate of 'fp5'; there are float32, tf32"),
        ({"rates": {**VALUES["rates"], "fp8": "fast"}}, "rates.fp8 of device 'd' must be a number above 0, got 'fast'"),
        ({"rates": 3}, "it lacks a table of rates"),
        ({"start": -1}, "start of device 'd' must be seconds"),
        ({"decodes": 1}, "decodes in"),
    ],
)
def test_a_file_with_a_mistake(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = tmp_path / "d.json"
    path.write_text(json.dumps({**VALUES, **change}))
    with pytest.raises(DeviceError) as error:
        find_device(str(path))
    assert said in str(error.value)


@pytest.mark.parametrize("text", ["[1]", "{", "", "[" * 100_000], ids=["list", "cut", "empty", "deep"])
def test_a_file_that_is_no_table(tmp_path: Path, text: str) -> None:
    path = tmp_path / "d.json"
    path.write_text(text)
    with pytest.raises(DeviceError):
        find_device(str(path))
