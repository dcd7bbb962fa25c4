"""The least that must hold: what was encoded decodes to what fake_quantize gives, in every format."""

import pytest
import torch

from metis_compile.numerics import FORMATS, fake_quantize, quantize


@pytest.mark.parametrize(("format", "block"), [(f.name, b) for f in FORMATS.values() for b in f.blocks])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_decode_of_encode_is_fake_quantize(format: str, block: str, rounding: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 33, 47, generator=generator)
    noise = torch.rand(x.shape, generator=generator) if rounding == "stochastic" else None
    quantized = quantize(x, format, 1, block, rounding, noise=noise)
    direct = fake_quantize(x, quantized.spec, 1, noise)
    assert torch.equal(quantized.dequantize().view(torch.int32), direct.view(torch.int32))
    assert (direct - x).norm() / x.norm() < (0.2 if "fp4" in format else 0.1)
