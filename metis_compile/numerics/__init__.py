"""Formats and numerics: the one definition of quantization, in plain torch."""

from metis_compile.numerics.formats import FORMATS, Format, QuantSpec
from metis_compile.numerics.held_amax import held_amax
from metis_compile.numerics.materialize import materialize, materializing
from metis_compile.numerics.noise import uniform_noise
from metis_compile.numerics.quantize import decode, encode, fake_quantize, noise_shape
from metis_compile.numerics.quantized_tensor import QuantizedTensor, quantize

__all__ = [
    "FORMATS",
    "Format",
    "QuantSpec",
    "QuantizedTensor",
    "decode",
    "encode",
    "fake_quantize",
    "held_amax",
    "materialize",
    "materializing",
    "noise_shape",
    "quantize",
    "uniform_noise",
]
