"""What a product gains from its shape alone."""

from __future__ import annotations

import pytest

from metis_compile.cost_model import DeviceError, find_device, gain


def test_by_hand() -> None:
    device = find_device("b200")
    m, n, k = 8192, 4096, 4096
    high = device.start + 2 * m * n * k / 2.25e15
    low = device.start + 2 * m * n * k / 9e15
    for elements in (m * k, k * n):  # the scale of the tensor, then codes and scales
        low += 2 * device.start + elements * (2 + 2 + 4.5 / 8) / 7.7e12
    assert gain("b200", "nvfp4", m, n, k) == pytest.approx(high / low)


def test_large_products_gain_and_small_ones_lose() -> None:
    gains = [gain("b200", "nvfp4", size, size, size) for size in (256, 1024, 4096, 16384)]
    assert gains == sorted(gains)
    assert gains[0] < 1 < gains[-1] < 4


def test_without_instructions_nothing_is_gained() -> None:
    assert gain("h100", "nvfp4", 8192, 8192, 8192) < 1 < gain("h100", "fp8", 8192, 8192, 8192)


def test_an_unknown_device() -> None:
    with pytest.raises(DeviceError, match="did you mean 'b200'"):
        gain("b20", "nvfp4", 1, 1, 1)
