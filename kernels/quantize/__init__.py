"""Quantization in Triton on the GPU."""
