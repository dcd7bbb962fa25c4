"""What every conditioning makes of a matrix: a residual and a product of two thin factors."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, NamedTuple

from torch import Tensor


class Conditioned(NamedTuple):
    """x ~= residual + left @ right; equal, to rounding, unless quantized factors are not folded into the residual."""

    residual: Tensor  # [rows, columns] float32
    left: Tensor  # [rows, k] float32
    right: Tensor  # [k, columns] float32


class Conditioning:
    """How an operand is split. :class:`Mean`, :class:`Spectral` and :class:`Chain` derive from it, and so may your own.

    A policy file names a class of yours as ``"package.module:Class"``: a frozen dataclass of keyword-only fields, each
    a setting of the policy file with a default, with a method `split`. Every other attribute has its default here; a
    class that does not derive from this one gets them too.
    """

    partner: str = "high"  # what the factors are multiplied by, of PARTNERS
    compensate: bool = False  # whether left takes in what quantizing the residual takes along right
    rank: int | float | str = "auto"  # of the basis that it keeps: a number, a share, or "auto"
    rank_least: int = 1  # of "auto"
    refresh: int = 0  # a basis that it keeps is made anew every so many steps; 0: never
    track: bool = True  # whether such a basis is moved on by `update_basis` in each step

    @property
    def needs_seed(self) -> bool:
        """Whether `split` draws random numbers, other than for a basis that it makes."""
        return True

    @property
    def depends_on_axis(self) -> bool:
        """Whether the split differs with the contracted axis, and cannot serve two products that differ in it."""
        return False

    @property
    def right_is_identity(self) -> bool:
        """Whether right is the identity, and left what was taken out of x, of its shape."""
        return False

    @property
    def keeps_basis(self) -> bool:
        """Whether a basis lives across steps; `fresh_basis` and `update_basis` are then its own."""
        return False

    @property
    def makes_basis(self) -> bool:
        """Whether `split` makes a basis, with a seed, where none is given."""
        return type(self).fresh_basis is not Conditioning.fresh_basis

    def with_rank(self, rows: int, columns: int, other: int | None = None) -> Any:
        """The conditioning as it is for a [rows, columns] operand. other: see :func:`resolve_rank`."""
        return self

    def factor_count(self, columns: int) -> int:
        """How many rows `right` has for a matrix of so many columns. Asked of a conditioning that compensates."""
        return int(self.rank)

    def split(
        self, x: Tensor, *, axis: int = 1, seed: Tensor | None = None, stream: int = 0, basis: Tensor | None = None
    ) -> Conditioned:
        """Split a matrix that a GEMM contracts along `axis`.

        x: [rows, columns], floating-point. seed: int64, one element, where the split draws random numbers: they depend
        on seed and stream alone, and use streams `stream + n * 2**24`, n from 1 to 7. basis: [k, columns] for a
        conditioning that keeps one; None otherwise, and where there is none yet.
        Plain torch that traces: no branch on values, none on symbolic sizes. A NaN or Inf in x stays in the residual
        or in a factor.
        """
        raise NotImplementedError(f"{type(self).__name__} must have a method split(x, *, axis, seed, stream, basis)")

    def fresh_basis(self, x: Tensor, seed: Tensor | None, *, stream: int = 0, rank: int | None = None) -> Tensor:
        """[k, columns]: a basis for x alone. Of a conditioning that makes one."""
        raise NotImplementedError(f"{type(self).__name__} keeps a basis, and must have a method fresh_basis")

    def update_basis(self, x: Tensor, basis: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[k, columns]: the basis for x, from that of the last step. Of a conditioning that keeps one."""
        raise NotImplementedError(f"{type(self).__name__} keeps a basis, and must have a method update_basis")


@cache
def derived(found: type[Any]) -> type[Any]:
    """A class with the defaults of :class:`Conditioning` behind its own attributes; itself where it derives from it."""
    if issubclass(found, Conditioning):
        return found
    about = {name: getattr(found, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(found.__name__, (found, Conditioning), about)


def as_conditioning(given: Any) -> Conditioning:
    """A frozen dataclass with a method `split`, as a :class:`Conditioning`; itself where it is one.

    Raises ValueError for anything else.
    """
    if isinstance(given, Conditioning):
        return given
    if not (is_dataclass(given) and not isinstance(given, type) and callable(getattr(given, "split", None))):
        wanted = "a frozen dataclass with a method split(x, *, axis, ...)"
        raise ValueError(f"a conditioning must be {wanted}, got {given!r}")
    made: Conditioning = derived(type(given))(**{field.name: getattr(given, field.name) for field in fields(given)})
    return made
