"""What the passes know about a matrix product: a `Site`, its two `Operand`s, and the sites that belong together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch
    from torch import fx

    from metis_compile.policy import Decision

Gemm = Literal["fprop", "dgrad", "wgrad"]
Role = Literal["weight", "activation", "gradient"]
KeptName = tuple[str, str]  # of what lives across steps: its site, and which part of that: passes/joint/kept_tensors


@dataclass(kw_only=True, eq=False)
class Operand:
    """One matrix of a product, as the graph has it and as it was before it was transposed or broadcast.

    `node` is the product's argument, `[..., rows, k]` on the left and `[..., k, columns]` on the right. `base` is the
    tensor that `views` turn into it; sites that read the same `base` along the same `axis` share its quantization.
    """

    node: fx.Node
    role: Role
    axis: int  # the contraction axis of `base`
    base: fx.Node
    views: tuple[fx.Node, ...]  # from base to node, first to last
    decision: Decision | None = None
    quantized: fx.Node | None = None  # the metis.quantize node, once rewritten
    note: str | None = None  # what became of the split that the policy asks for, where it could not be as it says
    kept_as: tuple[str, ...] = ()  # names of the nodes that hold it: its packed parts, or what it is a view of

    @property
    def dtype(self) -> torch.dtype:
        return self.base.meta["val"].dtype


@dataclass(kw_only=True, eq=False)
class Site:
    """One matrix product of the joint graph.

    m, n, k are ints or SymInts: the product is `[batch, m, k] @ [batch, k, n]`; of a grouped one, which has `offs`, m
    or k is all tokens. `reason` says why a site was left alone, and is None when it was rewritten.
    """

    node: fx.Node
    gemm: Gemm
    op: str  # what the model wrote: linear, matmul, einsum, ...
    module: str  # dotted path of the module that called it, "" for none
    source: str  # "file.py:12"
    lhs: Operand | None
    rhs: Operand | None
    batch: Any = 1
    m: Any = 0
    n: Any = 0
    k: Any = 0
    seq: int | None = None  # autograd's number, shared by a fprop, its dgrad and its wgrad
    block: tuple[int, int] | None = None  # index and number of blocks along the model's depth
    reason: str | None = None
    offs: fx.Node | None = None  # of a grouped product: where its groups of tokens end
    kind: str | None = None  # one of metis_compile.policy.KINDS, or None for an ordinary product
    kind_reason: str = ""  # what the kind was told from
    weights: tuple[str, ...] = field(default=())  # names of the parameters among the operands
    of_weight: bool = False  # a backward product whose fprop has a weight, be it no parameter
    early: bool = False  # a dgrad or wgrad that a loss computes in forward
    result: fx.Node | None = (
        None  # once rewritten: the product and its tails, before a cast; None where scaled together
    )

    @property
    def operands(self) -> tuple[Operand, ...]:
        return tuple(o for o in (self.lhs, self.rhs) if o is not None)

    @property
    def tokens(self) -> tuple[Operand, ...]:
        """The operands of a grouped product that are tokens, sorted by group; none of any other."""
        if self.offs is None or self.lhs is None or self.rhs is None:
            return ()
        return self.operands if self.groups_contracted else (self.lhs,)

    @property
    def groups_contracted(self) -> bool:
        """Whether this is a grouped product that contracts over tokens: wgrad."""
        return self.offs is not None and all(len(o.node.meta["val"].shape) == 2 for o in self.operands)

    @property
    def in_backward(self) -> bool:
        """Whether it is computed in backward: all but fprops and the gradients that a loss computes in forward."""
        return self.gemm != "fprop" and not self.early

    @property
    def has_weight(self) -> bool:
        """Whether a weight is multiplied; attention multiplies none, though what it takes queries from may be one."""
        if self.kind == "attention":
            return False
        return self.of_weight or bool(self.weights) or any(o.role == "weight" for o in self.operands)

    def __str__(self) -> str:
        return f"{self.gemm} of {self.op} in {self.module or '<model>'} ({self.source})"


@dataclass(frozen=True, kw_only=True)
class GraphInputs:
    """What is known of a Dynamo graph from outside: which inputs are what, by position, and the model around it."""

    parameters: dict[int, str]  # position -> dotted name
    buffers: frozenset[int] = frozenset()  # constants: they make an operand neither weight nor activation
    arguments: frozenset[int] = frozenset()  # matrices that the caller passes and trains, as functional models have
    state: tuple[int, int] | None = None  # the handles of what lives across steps: of forward and of backward
    kept: Mapping[KeptName, tuple[int, ...]] = field(default_factory=dict)  # shapes of what other graphs keep already
    depths: Mapping[str, int] = field(default_factory=dict)  # name of a list of blocks -> their number in the model
    heads: frozenset[str] = frozenset()  # modules that the model says compute its logits
    embeddings: frozenset[str] = frozenset()  # parameters that are tables of embeddings
    vocabulary: int | None = None  # rows of the largest of them
