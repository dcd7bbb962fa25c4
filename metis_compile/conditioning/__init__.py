"""Conditioning: x = residual + left @ right, so that what a block quantizer sees is easier to quantize."""

from metis_compile.conditioning.adaptive_rate import adapt_rate
from metis_compile.conditioning.base import Conditioned, Conditioning
from metis_compile.conditioning.basis import has_own_rank, kept_step, makes_basis, next_basis, with_kept_rank
from metis_compile.conditioning.chain import Chain
from metis_compile.conditioning.channels import Channels
from metis_compile.conditioning.clamp import Clamp
from metis_compile.conditioning.factors import PARTNERS, partner_spec
from metis_compile.conditioning.hadamard import fixed_signs, hadamard, signs_from
from metis_compile.conditioning.mean import Mean
from metis_compile.conditioning.orthonormal import orthonormalize
from metis_compile.conditioning.product import Prepared, prepare, product
from metis_compile.conditioning.rank import resolve_rank
from metis_compile.conditioning.registry import KINDS, describe, make_conditioning, split
from metis_compile.conditioning.residual import residual
from metis_compile.conditioning.spectral import Spectral

__all__ = [
    "KINDS",
    "PARTNERS",
    "Chain",
    "Channels",
    "Clamp",
    "Conditioned",
    "Conditioning",
    "Mean",
    "Prepared",
    "Spectral",
    "adapt_rate",
    "describe",
    "fixed_signs",
    "hadamard",
    "has_own_rank",
    "kept_step",
    "make_conditioning",
    "makes_basis",
    "next_basis",
    "orthonormalize",
    "partner_spec",
    "prepare",
    "product",
    "residual",
    "resolve_rank",
    "signs_from",
    "split",
    "with_kept_rank",
]
