"""What a device can do: FLOP/s by number format, bytes/s of its memory, and the time to start a kernel."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from metis_compile.spelling import did_you_mean

# What a rate is of: products of matrices in a dtype or format, and, in elements/s, the quantization of a tensor.
UNITS = ("float32", "tf32", "bfloat16", "fp8", "mxfp8", "fp4", "quantize")
_KERNEL_START = 3e-6  # seconds of a GPU between two kernels of a compiled graph: an assumption, no vendor's number
_LARGEST_FILE = 1 << 20  # bytes


class DeviceError(ValueError):
    """A device that is not known, or a file of one that can't be read: what was wrong, and what there is."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """A device of the roofline: a kernel takes max(FLOPs / rate, bytes / bandwidth), and the start of it.

    Raises DeviceError for a rate, a bandwidth or a start that is no such number, and for a unit that is none.
    """

    name: str
    rates: Mapping[str, float]  # unit, one of UNITS -> dense FLOP/s ("quantize": elements/s)
    bandwidth: float  # bytes/s
    start: float = _KERNEL_START  # seconds, of each kernel
    autocast: bool = True  # float32 of the model is taken for bfloat16, as one trains on it
    decodes: bool = False  # packed operands are decoded to memory, and not within the product: a CPU does so
    source: str = field(default="", compare=False)  # where the numbers are from

    def __post_init__(self) -> None:
        for unit, rate in self.rates.items():
            if unit not in UNITS:
                raise DeviceError(
                    f"metis: device {self.name!r} has a rate of {unit!r}; there are {', '.join(UNITS)}"
                    f"{did_you_mean(unit, UNITS)}"
                )
            self._check(f"rates.{unit}", rate)
        if not {"float32", "bfloat16"} <= self.rates.keys():
            raise DeviceError(f"metis: device {self.name!r} must have the rates float32 and bfloat16")
        self._check("bandwidth", self.bandwidth)
        if not (_is_number(self.start) and self.start >= 0):
            raise DeviceError(f"metis: start of device {self.name!r} must be seconds, at least 0, got {self.start!r}")

    def _check(self, key: str, value: Any) -> None:
        if not (_is_number(value) and value > 0):
            raise DeviceError(f"metis: {key} of device {self.name!r} must be a number above 0, got {value!r}")

    def rate(self, unit: str) -> float:
        """FLOP/s of a product in `unit`. One that the device has no instructions for runs in bfloat16, decoded."""
        if unit == "float32" and torch.get_float32_matmul_precision() != "highest":
            unit = "tf32" if "tf32" in self.rates else unit
        if unit == "tf32x3":  # three products for one of float32's precision: what our GEMM adds its thin products by
            return max(self.rates.get("tf32", 0.0) / 3, self.rates["float32"])
        return self.rates.get(unit, math.inf if unit == "quantize" else self.rates["bfloat16"])

    def seconds(self, unit: str, operations: float, nbytes: float, *, is_part: bool = False) -> float:
        """Of one kernel. operations: FLOPs, or elements of a quantization. is_part: of a kernel that has started."""
        return max(operations / self.rate(unit), nbytes / self.bandwidth) + (0.0 if is_part else self.start)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for a file that `find_device` reads."""
        return asdict(self)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


_HOPPER = {"float32": 66.9e12, "tf32": 494.7e12, "bfloat16": 989.4e12, "fp8": 1978.9e12}
DEVICES = {
    device.name: device
    for device in (
        # NVIDIA H100 Tensor Core GPU Architecture (white paper), table of peak rates: SXM5, dense. No MX, no FP4.
        Device(name="h100", rates=_HOPPER, bandwidth=3.35e12, source="NVIDIA H100 white paper, SXM5"),
        # NVIDIA H200 datasheet, SXM: the chip of the H100 with 141 GB of HBM3e.
        Device(name="h200", rates=_HOPPER, bandwidth=4.8e12, source="NVIDIA H200 datasheet, SXM"),
        # NVIDIA Blackwell Architecture Technical Brief, per GPU of an HGX B200, dense.
        Device(
            name="b200",
            rates={
                "float32": 75e12, "tf32": 1.1e15, "bfloat16": 2.25e15,
                "fp8": 4.5e15, "mxfp8": 4.5e15, "fp4": 9e15,
            },
            bandwidth=7.7e12,
            source="NVIDIA Blackwell technical brief, HGX B200",
        ),
        # NVIDIA HGX B300 datasheet, an eighth of the board, dense: FP4 alone is faster than on a B200.
        Device(
            name="b300",
            rates={
                "float32": 75e12, "tf32": 1.1e15, "bfloat16": 2.25e15,
                "fp8": 4.5e15, "mxfp8": 4.5e15, "fp4": 13.1e15,
            },
            bandwidth=8e12,
            source="NVIDIA HGX B300 datasheet",
        ),
        # NVIDIA RTX Blackwell GPU Architecture (white paper), appendix A: dense, accumulated in FP32.
        Device(
            name="rtx5090",
            rates={
                "float32": 104.8e12, "tf32": 104.8e12, "bfloat16": 209.5e12,
                "fp8": 419e12, "mxfp8": 419e12, "fp4": 1676e12,
            },
            bandwidth=1.792e12,
            source="NVIDIA RTX Blackwell white paper, GeForce RTX 5090",
        ),
    )
}  # fmt: skip


def find_device(device: str | Device) -> Device:
    """A device by its name ("b200", "RTX 5090"), by the path of a .json or .toml file, or as it is.

    Raises DeviceError with the names that there are and the nearest, or with what is wrong in the file.
    """
    if isinstance(device, Device):
        return device
    if not isinstance(device, str):
        raise DeviceError(f"metis: a device must be a name or a file, got {type(device).__name__}")
    named = DEVICES.get("".join(device.casefold().split()))
    if named is not None:
        return named
    if Path(device).suffix in (".json", ".toml"):
        return _read(device)
    raise DeviceError(
        f"metis: there is no device {device[:64]!r}; there are {', '.join(DEVICES)}, and .json or .toml files, as "
        f"`metis bench machine` writes one{did_you_mean(device, DEVICES)}"
    )


def _read(path: str) -> Device:
    try:
        if Path(path).stat().st_size > _LARGEST_FILE:
            raise DeviceError(f"metis: {path} is too large for the file of a device")
        text = Path(path).read_text()
        values = json.loads(text) if path.endswith(".json") else tomllib.loads(text)
    except OSError as error:
        raise DeviceError(f"metis: the file of a device can't be read: {error}") from None
    except (ValueError, RecursionError) as error:
        raise DeviceError(f"metis: {path} is no file of a device: {error}") from None
    if isinstance(values, dict) and isinstance(values.get("device"), dict):
        values = values["device"]  # what `metis bench machine` writes beside how it was measured
    if not isinstance(values, dict):
        raise DeviceError(f"metis: {path} must hold a table of a device's values")
    known = {f.name for f in fields(Device)}
    for key in values:
        if key not in known:
            raise DeviceError(f"metis: {path} has the unknown key {key!r}{did_you_mean(key, known)}")
    values = {"name": Path(path).stem, "autocast": False} | values
    lacks = [key for key in ("bandwidth", "rates") if key not in values]
    if lacks or not isinstance(values["rates"], dict):
        what = " and ".join(lacks) or "a table of rates"
        raise DeviceError(f"metis: {path} must have bandwidth, a number, and rates, a table; it lacks {what}")
    for key, kind in (("name", str), ("autocast", bool), ("decodes", bool), ("source", str)):
        if key in values and not isinstance(values[key], kind):
            raise DeviceError(f"metis: {key} in {path} must be a {kind.__name__}, got {values[key]!r}")
    return Device(**values)
