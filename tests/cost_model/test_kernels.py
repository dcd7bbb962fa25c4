"""One kernel: numbers and symbols."""

from __future__ import annotations

import pytest
import sympy
import torch

from metis_compile.cost_model.devices import Device
from metis_compile.cost_model.kernels import Kernel, at, product, unit_of

DEVICE = Device(name="d", rates={"float32": 1e12, "bfloat16": 2e12}, bandwidth=1e11, start=0.0, autocast=False)
AUTOCAST = Device(name="d", rates={"float32": 1e12, "bfloat16": 2e12}, bandwidth=1e11, start=0.0)


def test_a_product_in_symbols_is_that_of_the_numbers_put_in() -> None:
    tokens = sympy.Symbol("tokens", integer=True, positive=True)
    symbolic = product(1, tokens, 64, 32, dtype=torch.bfloat16)
    numeric = product(1, 128, 64, 32, dtype=torch.bfloat16)
    assert symbolic.flops == 2 * tokens * 64 * 32
    assert at(symbolic.nbytes, {"tokens": 128}) == numeric.nbytes == 2 * (128 * 32 + 32 * 64 + 128 * 64)
    assert symbolic.seconds(DEVICE, {"tokens": 128}) == numeric.seconds(DEVICE, {})
    with pytest.raises(KeyError, match="tokens"):
        at(symbolic.flops, {})


def test_float32_of_the_model_is_bfloat16_under_autocast() -> None:
    kernel = product(1, 512, 512, 512, dtype=torch.float32)
    low = product(1, 512, 512, 512, dtype=torch.bfloat16)
    assert kernel.seconds(AUTOCAST, {}) == low.seconds(AUTOCAST, {}) == low.seconds(DEVICE, {})
    assert kernel.seconds(DEVICE, {}) == 2 * low.seconds(DEVICE, {})


def test_decoding_costs_where_it_goes_through_memory() -> None:
    kernel = Kernel(kind="decode", name="decode", unit="bfloat16", nbytes=10**9, own=False)
    assert kernel.seconds(DEVICE, {}) == 0
    assert kernel.seconds(Device(**{**DEVICE.to_dict(), "decodes": True}), {}) == 0.01


@pytest.mark.parametrize(
    ("formats", "unit"),
    [
        (("nvfp4", "nvfp4"), "fp4"),
        (("mxfp4", "mxfp4"), "fp4"),
        (("mxfp8", "mxfp4"), "mxfp8"),
        (("mxfp8", "mxfp8_e5m2"), "mxfp8"),
        (("fp8", "fp8_e5m2"), "fp8"),
        (("nvfp4", "mxfp4"), "bfloat16"),
        (("nvfp4", "fp8"), "bfloat16"),
    ],
)
def test_what_multiplies_two_formats(formats: tuple[str, str], unit: str) -> None:
    assert unit_of(*formats) == unit
