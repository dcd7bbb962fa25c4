"""What a policy costs on a device, before it runs: FLOPs and bytes of each kernel, and a roofline."""

from metis_compile.cost_model.devices import DEVICES, Device, DeviceError, find_device
from metis_compile.cost_model.gain import gain
from metis_compile.cost_model.kernels import Kernel

__all__ = ["DEVICES", "Device", "DeviceError", "Kernel", "find_device", "gain"]
