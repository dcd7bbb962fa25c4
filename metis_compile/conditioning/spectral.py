"""The dominant right subspace, split off: right = V^T [k, columns] orthonormal, left = x V (metis, arXiv 2509.00404).

No decomposition of x is ever made. A basis of its own comes from a sketch of some rows S:

    Y = S^T Omega,  then `power_steps` times Y = S^T (S orth(Y)),  Q = orth(Y),  k + oversample columns
    V = Q times the k leading eigenvectors of (S Q)^T (S Q)                 (Rayleigh and Ritz; k + oversample small)

and one that is kept across steps from the last step's by one power step over all rows, or a share of them,
V = orth(X^T (X V)), at first from rows at random. The split is exact for any V: a better one leaves a smaller residual.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from metis_compile.conditioning.adaptive_rate import adapt_rate
from metis_compile.conditioning.base import Conditioned, Conditioning
from metis_compile.conditioning.factors import (
    BFLOAT16,
    HIGH,
    STREAMS,
    canonical_factors,
    check_matrix,
    check_partner,
    depends_on_axis,
    is_random,
    require_seed,
    rounded_factor,
)
from metis_compile.conditioning.operators import operators
from metis_compile.conditioning.orthonormal import orthonormalize, unit_columns
from metis_compile.conditioning.rank import AUTO, check_rank, resolve_rank, size_hint
from metis_compile.conditioning.residual import residual
from metis_compile.conditioning.sketch import SKETCHES, sample_rows, sketch_matrix
from metis_compile.conditioning.validation import check_count, check_flag, check_name, check_share


@dataclass(frozen=True, kw_only=True)
class Spectral(Conditioning):
    """x = residual + (x V) V^T, V an orthonormal basis of about the k dominant right singular directions of x."""

    rank: int | float | str = "auto"  # k: a number, a share of the smaller side, or "auto": see resolve_rank
    rank_least: int = 1  # of "auto": a narrow layer's 5% of extra work pays for fewer than are worth having
    sample: float = 0.05  # the share of rows that a first basis is made from
    sample_least: int = 4  # but at least so many times the sketch's width
    sketch: str = "gaussian"  # or "signs"
    oversample: int = 8  # columns of the sketch beyond k
    power_steps: int = 1  # over the sampled rows, when a first basis is made
    factors: str = "bfloat16"  # of left and right: "high", "bfloat16" or a format; left's norms stay float32
    fold: bool = True  # the residual is x minus the rounded factors' product: their rounding errors are then not lost
    partner: str = "high"  # what they are multiplied by: the other operand "high", as "e4m3 row" or as "residual" is
    compensate: bool = False  # left takes in what quantizing the residual takes along right: see `compensation`
    refresh: int = 0  # a new basis from a sketch every so many steps; 0: none, but without `track` one
    track: bool = True  # between these, one power step a step; false: the basis stays as it is
    track_share: float = 1.0  # of the rows, evenly spaced, that a power step reads; at least `sample_least` times k
    adaptive_rate: bool = False  # metis-v1's, for gradients: small singular values up to doubled. See adapt_rate
    adaptive_residual: float = 2.0  # what the residual is multiplied by under adaptive_rate

    def __post_init__(self) -> None:
        check_rank(self.rank)
        check_count("rank_least", self.rank_least, 1)
        check_share("sample", self.sample)
        check_count("sample_least", self.sample_least, 1)
        check_name("sketch", self.sketch, SKETCHES)
        check_count("oversample", self.oversample, 0)
        check_count("power_steps", self.power_steps, 0)
        object.__setattr__(self, "factors", canonical_factors(self.factors))
        check_flag("fold", self.fold)
        check_partner(self.partner)
        check_flag("compensate", self.compensate)
        if self.compensate and self.adaptive_rate:
            raise ValueError("compensate must be false where adaptive_rate changes the factors, got true for both")
        check_count("refresh", self.refresh, 0)
        check_flag("track", self.track)
        check_share("track_share", self.track_share)
        check_flag("adaptive_rate", self.adaptive_rate)
        factor = self.adaptive_residual
        is_number = isinstance(factor, (int, float)) and not isinstance(factor, bool)
        if not is_number or not 0 < factor <= torch.finfo(torch.float64).max:
            raise ValueError(f"adaptive_residual must be a finite number above 0, got {factor!r}")
        object.__setattr__(self, "adaptive_residual", float(factor))
        object.__setattr__(self, "sample", float(self.sample))
        object.__setattr__(self, "track_share", float(self.track_share))

    @property
    def keeps_basis(self) -> bool:
        """Whether a basis lives across steps."""
        return self.refresh != 1

    @property
    def needs_seed(self) -> bool:
        """Whether a split draws random numbers, other than for a basis that it makes."""
        return is_random(self.factors)

    @property
    def depends_on_axis(self) -> bool:
        """Whether the split differs with the contracted axis, and cannot serve two products that differ in it."""
        return depends_on_axis(self.factors)

    def _resolved(self, rows: int, columns: int, other: int | None = None) -> int:
        found = resolve_rank(self.rank, rows, columns, other)
        return resolve_rank(max(found, self.rank_least), rows, columns) if self.rank == AUTO else found

    @property
    def _stride(self) -> int:
        """Rows from one that a power step reads to the next; odd above 2, to meet all positions of sequences."""
        apart = int(1 / self.track_share)
        return apart if apart <= 2 else (apart - 1) | 1

    def with_rank(self, rows: int, columns: int, other: int | None = None) -> Spectral:
        """The same with the rank that it has for a [rows, columns] operand, and rows enough to follow so many.

        See :func:`resolve_rank`.
        """
        rank = self._resolved(rows, columns, other)
        least = self.sample_least * rank / max(size_hint(rows), 1)
        return replace(self, rank=rank, track_share=min(1.0, max(self.track_share, least)))

    def split(
        self,
        x: Tensor,
        *,
        axis: int = 1,
        seed: Tensor | None = None,
        stream: int = 0,
        basis: Tensor | None = None,
    ) -> Conditioned:
        """See :class:`Conditioning`. basis: [k, columns], orthonormal rows; None: a fresh one, which takes a seed.

        Quantized factors have blocks along the contraction axis where they have that axis (right for axis 1, left for
        axis 0) and along k where they don't; left is quantized with its columns scaled to unit norm.
        """
        check_matrix(x, axis)
        x = x.to(torch.float32)
        right = self.fresh_basis(x, seed, stream=stream) if basis is None else basis.to(torch.float32)
        left = torch.mm(x, right.mT)
        stored_left, stored_right = self._store(left, right, axis, seed, stream)
        if self.fold:
            left, right = stored_left, stored_right
        result = Conditioned(residual(x, left=left, right=right), stored_left, stored_right)
        return adapt_rate(result, residual_factor=self.adaptive_residual) if self.adaptive_rate else result

    def fresh_basis(self, x: Tensor, seed: Tensor | None, *, stream: int = 0, rank: int | None = None) -> Tensor:
        """[k, columns] float32 with orthonormal rows, from a sketch. rank: k; None: as the settings say of x alone.

        Elements of x that are not finite count as 0 here. Raises ValueError without a seed.
        """
        seed = require_seed(seed, "a fresh basis")
        k = self._resolved(*x.shape) if rank is None else rank
        installed = operators()
        if installed is not None:
            return installed.fresh_basis(self, x, seed, stream, k, None, None)
        width = resolve_rank(k + self.oversample, *x.shape)
        rows = sample_rows(x, self.sample, self.sample_least * width, seed, stream + 3 * STREAMS).to(torch.float32)
        rows = torch.where(torch.isfinite(rows), rows, 0.0)
        if statically_known_true(rows.shape[0] == 0):
            return torch.eye(x.shape[1], device=x.device)[:k]
        rows = rows / torch.clamp(torch.amax(torch.abs(rows)), min=torch.finfo(torch.float32).tiny)
        streams = (stream + 4 * STREAMS, stream + 5 * STREAMS)
        y = torch.mm(rows.mT, sketch_matrix(self.sketch, [rows.shape[0], width], seed, *streams))
        for _ in range(self.power_steps):
            y = torch.mm(rows.mT, torch.mm(rows, orthonormalize(y)))
        q = orthonormalize(y)
        if width > k:
            seen = torch.mm(rows, q)
            gram = _without_noise(torch.mm(seen.mT, seen))
            q = torch.mm(q, torch.linalg.eigh(gram)[1].flip(1)[:, :k])
        return q.mT

    def refreshed_basis(
        self, x: Tensor, seed: Tensor | None, kept: Tensor, stale: Tensor, *, stream: int = 0
    ) -> Tensor:
        """:meth:`fresh_basis` where `stale`, one bool, is true, else `kept`: compiled, nothing is made in vain then."""
        installed = operators()
        if installed is None or type(self).fresh_basis is not Spectral.fresh_basis:
            return torch.where(stale, self.fresh_basis(x, seed, stream=stream), kept)
        rank = self._resolved(*x.shape)
        return installed.fresh_basis(self, x, require_seed(seed, "a fresh basis"), stream, rank, kept, stale)

    def update_basis(self, x: Tensor, basis: Tensor, left: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """The basis after one power step, orth(x^T (x V))^T: [k, columns] -> [k, columns]. Keeps no state itself.

        left: x V, where it is known already. Directions in which x is zero stay as they are, and all of them do where
        x is not finite, so that one bad step does not lose what was learnt.
        """
        if left is None:
            x = x[:: self._stride]
        installed = operators()
        if installed is not None:
            return installed.power_step(x, basis, left)
        x, basis = x.to(torch.float32), basis.to(torch.float32)
        unit, norms = unit_columns(torch.mm(x, basis.mT) if left is None else left)
        step = torch.mm(unit.mT, x).mT  # x^T unit; CPU libraries take two or three times as long for it as it stands
        step = torch.where((norms > 0) & torch.isfinite(step).all(), step, basis.mT)
        return orthonormalize(step).mT

    def _store(self, left: Tensor, right: Tensor, axis: int, seed: Tensor | None, stream: int) -> tuple[Tensor, Tensor]:
        streams = (stream + STREAMS, stream + 2 * STREAMS)
        stored_right = rounded_factor(right, self.factors, axis, seed, streams[1])
        if self.factors in (HIGH, BFLOAT16):
            return rounded_factor(left, self.factors, axis, seed, streams[0]), stored_right
        unit, norms = unit_columns(left)
        return rounded_factor(unit, self.factors, axis, seed, streams[0]) * norms, stored_right


def _without_noise(gram: Tensor) -> Tensor:
    """A Gram matrix without elements below 2^-46 of its largest, which float32 does not tell from nothing beside it.

    Of a matrix of one row, LAPACK's float32 eigenvectors may fail to converge on them.
    """
    return torch.where(torch.abs(gram) < 2.0**-46 * torch.amax(torch.abs(gram)), 0.0, gram)
