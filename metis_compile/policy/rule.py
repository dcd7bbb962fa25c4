"""Rules of a policy: what a rule may ask about a GEMM's operand, and whether it matches."""

from collections.abc import Callable
from dataclasses import dataclass, field

import sympy

from metis_compile.policy.depth import canonical_blocks, in_blocks
from metis_compile.policy.errors import PolicyError, show, unknown_name
from metis_compile.policy.globs import compile_glob
from metis_compile.policy.kinds import KINDS
from metis_compile.policy.shape_conditions import SIZES, parse_condition
from metis_compile.policy.treatment import HIGH, OPERANDS, Recipe, Treatment

OPS = (  # what the model called; a rule that names none matches any other op too
    "linear",
    "mm",
    "addmm",
    "matmul",
    "bmm",
    "baddbmm",
    "addbmm",
    "einsum",
    "tensordot",
    "bilinear",
    "grouped_mm",
    "scaled_dot_product_attention",
    "multi_head_attention_forward",
)
GEMMS = ("fprop", "dgrad", "wgrad")
DTYPES = ("float32", "bfloat16", "float16")  # no other dtype is ever quantized

DecideCondition = Callable[[sympy.Basic], bool]


@dataclass(frozen=True, kw_only=True)
class Query:
    """One operand of one GEMM, as the passes see it."""

    module: str  # dotted name of the module whose forward holds the op, "" for none
    block: tuple[int, int] | None  # (index from 0, count) of the repeated block around it; None outside of any
    op: str  # the function that the model called, such as "linear"
    gemm: str  # one of GEMMS
    operand: str  # one of OPERANDS
    dtype: str  # such as "bfloat16"
    has_weight: bool  # False for a product of two activations, and for its backward products
    m: int | sympy.Expr  # the GEMM is [m, k] x [k, n]; k is contracted; batch dimensions are not counted
    n: int | sympy.Expr
    k: int | sympy.Expr
    kind: str | None = None  # one of KINDS, or None for an ordinary product
    hints: tuple[int, int, int] | None = None  # the numbers that m, n and k stand for, where they are symbols


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What a policy says about one operand, and which rule said it."""

    treatment: Treatment
    recipe: str  # the recipe's name
    rule: str  # the rule's label, or "no rule of NAME matched"
    index: int | None  # into Policy.rules; None where no rule matched


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A recipe and the conditions under which it applies; a condition that is None holds for everything.

    Where a list is taken, one entry of it has to match; a single text stands for a list of one. All
    conditions have to hold. Raises PolicyError, with the key, for a value that could never be right.
    """

    recipe: str  # name of a recipe of the policy, of a preset, or "high"
    module: tuple[str, ...] | None = None  # globs over the module's name
    kind: tuple[str, ...] | None = None  # of KINDS: what the product is for
    blocks: tuple[str, ...] | None = None  # places in depth: "first 2", "last 4", "3-5"
    op: tuple[str, ...] | None = None  # of OPS
    gemm: tuple[str, ...] | None = None  # of GEMMS
    operand: tuple[str, ...] | None = None  # of OPERANDS; other operands of the GEMM fall to later rules
    dtype: tuple[str, ...] | None = None  # of DTYPES
    has_weight: bool | None = None  # whether the product involves a weight
    when: str | None = None  # a condition over the GEMM's m, n and k
    source: str = field(default="", compare=False)  # name of the file it was written in
    number: int = field(default=0, compare=False)  # its place in that file, from 1

    def __post_init__(self) -> None:
        if not isinstance(self.recipe, str):
            problem = f"must be the name of a recipe, got {show(self.recipe)}"
            raise PolicyError(problem, key="recipe", value=self.recipe)
        self._settle("module", lambda glob: compile_glob(glob).text)
        self._settle("blocks", canonical_blocks)
        for key, names in (("kind", KINDS), ("op", OPS), ("gemm", GEMMS), ("operand", OPERANDS), ("dtype", DTYPES)):
            self._settle(key, _one_of(names), order=names)
        if self.has_weight is not None and not isinstance(self.has_weight, bool):
            problem = f"must be true or false, got {show(self.has_weight)}"
            raise PolicyError(problem, key="has_weight", value=self.has_weight, allowed=("true", "false"))
        if self.when is not None:
            if not isinstance(self.when, str):
                problem = f"must be a condition in quotes, got {show(self.when)}"
                raise PolicyError(problem, key="when", value=self.when)
            try:
                object.__setattr__(self, "when", parse_condition(self.when).text)
            except PolicyError as error:
                raise error.at(key="when") from None

    def _settle(self, key: str, canonical: Callable[[str], str], *, order: tuple[str, ...] | None = None) -> None:
        """Replaces a list by its canonical form: a tuple without repeats, in ``order`` where there is one."""
        given = getattr(self, key)
        if given is None:
            return
        entries = [given] if isinstance(given, str) else given
        if not isinstance(entries, (list, tuple)) or not all(isinstance(entry, str) for entry in entries):
            raise PolicyError(f"must be a text or a list of texts, got {show(given)}", key=key, value=given)
        if not entries:
            raise PolicyError(
                "is an empty list, which matches nothing; leave it out to match anything",
                key=key,
                value=given,
            )
        settled: dict[str, None] = {}
        for entry in entries:
            try:
                settled[canonical(entry)] = None
            except PolicyError as error:
                raise error.at(key=key) from None
        names = sorted(settled, key=order.index) if order else settled
        object.__setattr__(self, key, tuple(names))

    @property
    def label(self) -> str:
        """Names the rule in a report: ``run.toml rule 2 (module=*.lm_head)``."""
        parts = []
        for key in ("module", "kind", "blocks", "op", "gemm", "operand", "dtype"):
            entries = getattr(self, key)
            if entries is not None:
                more = f"|+{len(entries) - 3} more" if len(entries) > 4 else ""
                parts.append(f"{key}={'|'.join(entries[:3] if more else entries)}{more}")
        if self.has_weight is not None:
            parts.append(f"has_weight={str(self.has_weight).lower()}")
        if self.when is not None:
            parts.append(f"when={self.when}")
        return f"{self.source} rule {self.number} ({', '.join(parts) or 'any'})".lstrip()

    def matches(self, query: Query, decide_condition: DecideCondition | None = None, format: str | None = None) -> bool:
        """Whether the rule applies to ``query``. format: what a condition's gain is of, where it names none.

        The shape condition is looked at last, so that ``decide_condition`` is asked (and a guard on a
        symbolic size is made) only for a rule that everything else says applies.
        """
        if not self.matches_place(query.module, query.block):
            return False
        for names, value in (
            (self.kind, query.kind),
            (self.op, query.op),
            (self.gemm, query.gemm),
            (self.operand, query.operand),
            (self.dtype, query.dtype),
        ):
            if names is not None and value not in names:
                return False
        if self.has_weight is not None and self.has_weight != query.has_weight:
            return False
        return self.when is None or self._shape_matches(query, decide_condition, format)

    def matches_place(self, module: str, block: tuple[int, int] | None) -> bool:
        """Whether ``module`` and ``blocks`` hold for a module of this name, block ``(index, count)`` or in none."""
        if self.module is not None and not any(compile_glob(glob).fullmatch(module) for glob in self.module):
            return False
        return self.blocks is None or (block is not None and any(in_blocks(text, *block) for text in self.blocks))

    def _shape_matches(self, query: Query, decide_condition: DecideCondition | None, format: str | None) -> bool:
        assert self.when is not None
        try:
            hints = None if query.hints is None else dict(zip(SIZES, query.hints, strict=True))
            result = parse_condition(self.when).evaluate({"m": query.m, "n": query.n, "k": query.k}, hints, format)
        except PolicyError as error:
            raise error.at(key=f"{self.label}, when") from None
        if isinstance(result, bool):
            return result
        if decide_condition is None:
            raise PolicyError(
                f"{show(self.when)} is not decided by these sizes: {result} is left; give decide_condition",
                key=f"{self.label}, when",
                value=self.when,
            )
        try:
            return bool(decide_condition(result))
        except PolicyError as error:
            raise error.at(key=f"{self.label}, when") from None


def check_gain(rule: Rule, recipe: Recipe) -> None:
    """Raises PolicyError for a rule that asks what a recipe gains which quantizes nothing."""
    if rule.when is not None and parse_condition(rule.when).needs_format and gain_format(recipe, "weight") is None:
        problem = f"{show(rule.when)} has a gain of the recipe {show(rule.recipe)}, which quantizes nothing"
        raise PolicyError(f"{problem}; name a format, as in gain('b200', 'nvfp4')", value=rule.when)


def gain_format(recipe: Recipe, operand: str) -> str | None:
    """The format that a gain is of: the operand's, or that of another where the recipe leaves this one high."""
    treatments = (recipe.treatment(operand), *recipe.treatments)
    return next((t.format for t in treatments if t.format != HIGH), None)


def _one_of(names: tuple[str, ...]) -> Callable[[str], str]:
    def check(entry: str) -> str:
        if entry not in names:
            raise unknown_name(entry, names)
        return entry

    return check
