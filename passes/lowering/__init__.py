"""Passes over the forward and the backward graph: operators of metis become kernels, templates or aten ops."""
