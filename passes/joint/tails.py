"""Conditioned operands: A = R + L F. The big product reads the residuals; thin tails carry the rest.

With A [m, k] = R + U S and B [k, n] = R' + U' S' as the product reads them,

    A B  =  Q(R) Q(R')  +  U (S B)  +  (R U') S'

U and S are left and right of the split where the product contracts the tensor's columns; where it contracts its rows
they are right and left, transposed. Where a split takes out single elements, left holds them and right is the identity,
which is not multiplied by. What a tail reads of the other operand, its *partner*, is in high precision, or
what the big product reads, as the split says; in backward an activation is only there as it was saved, residual and
factors. Where left is a column of ones (a mean), S B is a sum and U (...) a row that is added to all rows.

In a grouped product what is contracted over tokens is a product for each group, [groups, r, n], and so is the other
one: U (S B) has S B[g] for each of the experts' matrices, and tokens take that of their group.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import fx

from metis_compile.compat import enable_python_dispatcher
from metis_compile.conditioning import Conditioning, Mean, kept_step, makes_basis, next_basis
from metis_compile.conditioning.compensation import compensated_left
from metis_compile.conditioning.factors import partner_spec
from metis_compile.conditioning.hadamard import SIZE, fixed_signs, signs_from
from metis_compile.conditioning.operators import using
from metis_compile.conditioning.registry import as_read
from metis_compile.numerics import QuantSpec
from metis_compile.numerics.noise import stream_offset
from metis_compile.ops.grouped import GROUPED_MM
from metis_compile.ops.hadamard import HADAMARD, INVERSE_HADAMARD
from metis_compile.passes.graph.builder import GraphBuilder
from metis_compile.passes.graph.inline import Inliner
from metis_compile.passes.graph.operators import GraphOperators
from metis_compile.passes.graph.sites import GraphInputs, KeptName, Operand
from metis_compile.passes.joint.kept_tensors import KeptTensors

aten = torch.ops.aten
SIGN_STREAM = 2**30  # of fresh Hadamard signs: one for the graph, since both operands of a product need the same


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Nodes of one split tensor, float32: residual [rows, columns], left [rows, r], right [r, columns]."""

    residual: fx.Node
    left: fx.Node
    right: fx.Node


class Hadamard(NamedTuple):
    """A transform along the contracted axis: "fixed" or "fresh" signs, and how many elements it mixes."""

    signs: str
    size: int


@dataclass(frozen=True, kw_only=True)
class Side:
    """One operand of a product, for its tails."""

    operand: Operand
    is_left: bool
    split: Conditioning | None
    parts: Parts | None
    quantized: fx.Node  # what the big product reads, as `operand.base` lies: of the residual where there is one
    spec: QuantSpec | None
    only_saved: bool  # in backward, an activation: the tensor itself would have to be kept for it
    hadamard: Hadamard | None = None  # `quantized` is of the transformed tensor

    @property
    def ones(self) -> bool:
        return isinstance(self.split, Mean)

    @property
    def dense(self) -> bool:
        """Whether right is the identity, and left what was taken out: no thin product."""
        return self.split is not None and self.split.right_is_identity

    @property
    def contracts_rows(self) -> bool:
        return self.operand.axis == self.operand.base.meta["val"].dim() - 2


@dataclass(frozen=True, kw_only=True)
class Partner:
    """An operand as a tail of the other one reads it, [m, k] or [k, n]: value, float32, plus the product of `thin`.

    The whole is never made: a thin product with it is one with the value and a few with the factors. Without a value,
    that product with it is zero.
    """

    value: fx.Node | None
    thin: tuple[fx.Node, fx.Node] | None = None


def _counts(split: Conditioning) -> bool:
    """Whether the steps are counted that a basis has served."""
    step = kept_step(split)
    return step.refresh > 0 or not step.track


def partner_of(split: Conditioning) -> str:
    """What the split's factors are multiplied by."""
    return split.partner


class Conditioner:
    """Splits tensors, each once, and makes the tails of products."""

    def __init__(self, builder: GraphBuilder, inputs: GraphInputs) -> None:
        self.builder = builder
        self.inliner = Inliner(builder, lambda: using(GraphOperators()))
        self.kept = KeptTensors(builder, inputs)
        self._parts: dict[Any, Parts] = {}
        self._not_kept: dict[Any, str] = {}  # why the basis of a split that would keep one is made anew
        self._moved: dict[Any, fx.Node] = {}
        self._transformed: dict[Any, fx.Node] = {}
        self._compensated: dict[Any, fx.Node] = {}

    def split(
        self,
        operand: Operand,
        split: Conditioning,
        stream: int,
        label: str,
        *,
        kept_name: KeptName | None,
        backward: bool,
    ) -> Parts:
        """Residual and factors of `operand.base`, where the builder stands unless they are there already.

        kept_name: of the basis, where the split keeps one. backward: whether it stands in the backward part.
        """
        axis = operand.axis
        key = (operand.base, split, axis if split.depends_on_axis else None)
        if key not in self._parts:
            moved = self._moved.get((operand.base, split))
            kept = kept_name is not None and self.kept.training
            if kept and moved is None and self._why_not_kept(operand, split) is None:
                assert kept_name is not None
                self._parts[key] = self._follow(operand, split, stream, label, kept_name, backward)
            else:
                self._parts[key] = self._split_by(operand, split, stream, label, moved)
        if (operand.base, split) in self._not_kept:
            operand.note = f"basis made anew each step: {self._not_kept[operand.base, split]}"
        return self._parts[key]

    def _why_not_kept(self, operand: Operand, split: Conditioning) -> str | None:
        """Why the basis of a split can't live across steps, or None; it is then made anew in each."""
        key = operand.base, split
        if key not in self._not_kept:
            why = self.kept.refusal(self._basis_shape(split, operand.base))
            if why is None:
                return None
            self._not_kept[key] = why
        return self._not_kept[key]

    def _split_by(self, operand: Operand, split: Conditioning, stream: int, label: str, basis: fx.Node | None) -> Parts:
        """A split by the basis that this step has for the tensor already; without one, by itself."""
        axis, base = operand.axis, operand.base
        seed = []
        if split.needs_seed:
            seed = [self._stream_seed(base, stream)]
        elif makes_basis(split, given=basis is not None):  # inference draws nothing: it gives the same each time
            seed = [self._stream_seed(base, stream) if self.kept.training else self._fixed_seed(base, stream)]

        def run(x: torch.Tensor, *given: torch.Tensor) -> list[torch.Tensor]:
            noise, kept = (given[0] if seed else None), given[len(seed) :]
            x = as_read(split, x)
            return list(split.split(x, axis=axis, seed=noise, basis=kept[0] if kept else None))

        inputs = [base, *seed, *([] if basis is None else [basis])]
        key = ("split" if basis is None else "split by", split, axis)
        with self.builder.marking(metis_tail=True):
            residual, left, right = self.inliner.insert(key, run, inputs, label)
        return Parts(residual=residual, left=left, right=right)

    def _follow(
        self, operand: Operand, split: Conditioning, stream: int, label: str, kept_name: KeptName, backward: bool
    ) -> Parts:
        """A split by a basis that is kept: read, moved on by this step's tensor, and written back.

        Once for both axes: they differ in how factors are rounded alone.
        """
        axis, base = operand.axis, operand.base
        device = base.meta["val"].device
        slot = self.kept.at(kept_name, self._basis_shape(split, base), device, backward)
        kept = [slot.read(f"{label}_kept")]
        counter = None
        if _counts(split):
            counter = self.kept.at((kept_name[0], f"{kept_name[1]}.steps"), [1], device, backward)
            kept.append(counter.read(f"{label}_count"))
        random = counter is not None or split.needs_seed or makes_basis(split, given=True)
        seed = [self._stream_seed(base, stream)] if random else []

        def run(x: torch.Tensor, *given: torch.Tensor) -> list[torch.Tensor]:
            noise, x = given[0] if seed else None, as_read(split, x)
            moved = next_basis(split, x, *given[len(seed) :], axis=axis, seed=noise)
            return [*split.split(x, axis=axis, seed=noise, basis=moved[0]), *moved]

        inputs = [base, *seed, *kept]
        with self.builder.marking(metis_tail=True):
            residual, left, right, moved, *count = self.inliner.insert(("follow", split, axis), run, inputs, label)
        slot.write(moved)
        self._moved[base, split] = moved
        if counter is not None:
            counter.write(count[0])
        return Parts(residual=residual, left=left, right=right)

    def _stream_seed(self, node: fx.Node, stream: int) -> fx.Node:
        """The seed that a stream starts at, as a node: what is traced for one tensor then serves all of its shape."""
        seed = self.builder.seed(node.meta["val"].device)
        # not named after the node: the partitioner takes what has "tangents" in its name for an input of backward
        return self.builder.call(aten.add.Tensor, (seed, stream_offset(stream)), name=f"metis_seed_{stream}")

    def _fixed_seed(self, node: fx.Node, stream: int) -> fx.Node:
        kwargs = {"dtype": torch.int64, "device": node.meta["val"].device}
        return self.builder.call(aten.full.default, ([1], stream_offset(stream)), kwargs, name=f"metis_seed_{stream}")

    def _basis_shape(self, split: Any, base: fx.Node) -> list[int]:
        assert self.builder.fake_mode is not None
        x = base.meta["val"]
        with self.builder.fake_mode, enable_python_dispatcher(), using(GraphOperators()):
            seed = torch.zeros(1, dtype=torch.int64, device=x.device)
            return list(split.fresh_basis(as_read(split, x), seed).shape)

    def hadamard(self, node: fx.Node, axis: int, how: Hadamard) -> fx.Node:
        """`node` transformed along `axis`, float32, filled up to whole blocks; once for all that read it so."""
        if (node, axis, how) not in self._transformed:
            args = (node, axis, *self._signs(node, how))
            self._transformed[node, axis, how] = self.builder.call(HADAMARD, args, name=f"{node.name}_hadamard")
        return self._transformed[node, axis, how]

    def _signs(self, node: fx.Node, how: Hadamard) -> list[fx.Node]:
        """The signs that a transform takes: none where they are the 16 that never change."""
        device = node.meta["val"].device
        if how.signs != "fresh" and how.size == SIZE:
            return []
        seed = [self.builder.shared_seed(device)] if how.signs == "fresh" else []

        def run(*seed: torch.Tensor) -> list[torch.Tensor]:
            return [signs_from(seed[0], SIGN_STREAM, how.size) if seed else fixed_signs(device, how.size)]

        return self.inliner.insert(("signs", how, device), run, seed, f"{node.name}_signs")

    def _plain(self, side: Side) -> fx.Node:
        """What the big product reads, without the Hadamard transform."""
        if side.hadamard is None:
            return side.quantized
        axis, length = side.operand.axis, self.builder.size(side.operand.base, side.operand.axis)
        args = (side.quantized, axis, length, *self._signs(side.quantized, side.hadamard))
        return self.builder.call(INVERSE_HADAMARD, args, name=f"{side.quantized.name}_plain")

    def tails(self, left: Side, right: Side) -> list[fx.Node]:
        """What to add to the big product: matrices [m, n], or rows [1, n] that are added to every row."""
        found = []
        if left.parts is not None and left.split is not None:
            partner = self._partner(right, left.split)
            if partner.thin is not None and self._vanishes(left, right, left.split):
                partner = replace(partner, value=None)
            u, s = self._factors(left)
            found.append(self._outer(left, u, self._inner(left, s, partner)))
        if right.parts is not None and right.split is not None and not self._vanishes(left, right, right.split):
            u, s = self._factors(right)
            # without factors of its own: where the left operand is split the partner is its residual alone
            read = self._partner(left, right.split, residual_only=left.parts is not None).value
            assert read is not None
            if right.dense and right.contracts_rows:
                found.append(self.builder.call(aten.mm.default, (read, u)))
                return found
            if right.dense:
                thin = read
            elif right.ones and right.contracts_rows:
                thin = self.builder.call(aten.sum.dim_IntList, (read, [1], True))
            elif left.contracts_rows:  # of the transpose of what lies row by row: U^T times that is faster
                thin = self._transpose(self.builder.call(aten.mm.default, (self._transpose(u), self._transpose(read))))
            else:
                thin = self.builder.call(aten.mm.default, (read, u))
            found.append(self.builder.call(aten.mm.default, (thin, s)))
        return found

    def grouped_tails(self, left: Side, right: Side, offs: fx.Node, *, over_tokens: bool) -> list[fx.Node]:
        """What to add to a grouped product, of its shape. over_tokens: whether it contracts these.

        Sums over the tokens of a group don't vanish, so that no mean has a short cut here.
        """
        found = []

        def contracted(a: fx.Node, b: fx.Node) -> fx.Node:
            return self.builder.call(GROUPED_MM, (a, b, offs)) if over_tokens else self._for_each(a, b, offs)

        def spread(a: fx.Node, b: fx.Node) -> fx.Node:
            return self._for_each(a, b, offs) if over_tokens else self.builder.call(GROUPED_MM, (a, b, offs))

        if left.parts is not None and left.split is not None:
            u, s = self._factors(left)
            partner = self._partner(right, left.split)
            assert partner.value is not None
            inner = contracted(s, partner.value)
            if partner.thin is not None:
                inner = self.builder.call(
                    aten.add.Tensor, (inner, self._for_each(contracted(s, partner.thin[0]), partner.thin[1], offs))
                )
            found.append(spread(u, inner))
        if right.parts is not None and right.split is not None:
            u, s = self._factors(right)
            read = self._partner(left, right.split, residual_only=left.parts is not None).value
            assert read is not None
            found.append(self._for_each(contracted(read, u), s, offs))
        return found

    def _for_each(self, a: fx.Node, b: fx.Node, offs: fx.Node) -> fx.Node:
        """a @ b for each group, of which one may be a matrix for all of them."""
        groups = self.builder.size(offs, 0)
        many = [
            x if x.meta["val"].dim() == 3 else self.builder.call(aten.expand.default, (x, [groups, -1, -1]))
            for x in (a, b)
        ]
        return self.builder.call(aten.bmm.default, tuple(many))

    @staticmethod
    def _vanishes(left: Side, right: Side, split: Conditioning) -> bool:
        """R times the ones of the other operand's `split`, over the tokens that R is centered over, is zero.

        Of R as the split left it: the published recipe keeps the sums of quantized residuals.
        """
        over_tokens = left.contracts_rows and right.contracts_rows
        centered = all(isinstance(s.split, Mean) and s.split.cross_terms_are_zero for s in (left, right))
        return over_tokens and centered and partner_of(split) == "high"

    def _factors(self, side: Side) -> tuple[fx.Node, fx.Node]:
        """U and S of a split operand, in the orientation in which the product reads it."""
        assert side.parts is not None
        left, right = self._left(side), side.parts.right
        if side.contracts_rows != side.is_left:
            return left, right
        return self._transpose(right), self._transpose(left)

    def _left(self, side: Side) -> fx.Node:
        """As the split gave it, or compensated, where the tensor is at hand and not only what was saved of it."""
        assert side.parts is not None
        if side.split is None or not side.split.compensate or side.only_saved or side.spec is None:
            return side.parts.left
        key = side.quantized, side.parts.left
        if key not in self._compensated:

            def run(*given: torch.Tensor) -> list[torch.Tensor]:
                assert side.split is not None
                return [compensated_left(side.split, *given)]

            x = self.builder.cast(side.operand.base, torch.float32)
            inputs = [side.parts.left, side.parts.right, x, self._plain(side)]
            name = f"{side.quantized.name}_compensated"
            (self._compensated[key],) = self.inliner.insert(("compensated", side.split), run, inputs, name)
        return self._compensated[key]

    def _inner(self, side: Side, s: fx.Node, partner: Partner) -> fx.Node:
        """S times the partner, [r, n]."""

        def reduced(matrix: fx.Node) -> fx.Node:
            if side.dense and not side.contracts_rows:
                return matrix
            if side.ones and side.contracts_rows:
                return self.builder.call(aten.sum.dim_IntList, (matrix, [0], True))
            return self.builder.call(aten.mm.default, (s, matrix))

        result = None if partner.value is None else reduced(partner.value)
        if partner.thin is None:
            assert result is not None
            return result
        u, t = partner.thin
        if result is None:
            return self.builder.call(aten.mm.default, (reduced(u), t))
        return self.builder.call(aten.add.Tensor, (result, self.builder.call(aten.mm.default, (reduced(u), t))))

    def _outer(self, side: Side, u: fx.Node, inner: fx.Node) -> fx.Node:
        if (side.ones and not side.contracts_rows) or (side.dense and side.contracts_rows):
            return inner
        return self.builder.call(aten.mm.default, (u, inner))

    def _partner(self, side: Side, split: Conditioning, residual_only: bool = False) -> Partner:
        """The other operand as a tail reads it."""
        thin = None
        spec = partner_spec(partner_of(split), side.spec)
        if partner_of(split) == "residual" or side.only_saved:
            value = self.builder.cast(self._plain(side), torch.float32)
            if side.parts is not None and not residual_only:
                thin = self._factors(side)
        else:
            source = side.parts.residual if side.parts is not None and residual_only else side.operand.base
            value = self.builder.cast(source, torch.float32)
            if spec is not None and side.spec is not None:  # an operand that is left high stays so
                value = self.builder.fake_quantize(value, spec, side.operand.axis)
        return Partner(value=value if side.contracts_rows != side.is_left else self._transpose(value), thin=thin)

    def _transpose(self, node: fx.Node) -> fx.Node:
        order = [1, 0] if node.meta["val"].dim() == 2 else [0, 2, 1]
        return self.builder.call(aten.permute.default, (node, order))
