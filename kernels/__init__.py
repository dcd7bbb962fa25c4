"""Triton kernels and the lowering of metis ops."""
