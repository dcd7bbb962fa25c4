"""Conditions on a GEMM's shape: ``k >= 256 and n % 16 == 0``.

The text is Python's expression syntax cut down to whole numbers, the names m, n and k, ``+ - * // %``,
comparisons (chained ones too) and ``and``, ``or``, ``not``. It is parsed, never run: each node of the syntax
tree is evaluated on whole numbers, or, where a size is the symbolic one of a dynamic shape, turned into a sympy object.

``gain('b200') > 1.0`` compares what quantizing the product gains on a device, as ``gain('b200', 'nvfp4')`` does for a
format, with numbers. It is evaluated at the sizes that a graph is compiled with and makes no guard.
"""

import ast
import copy
import operator
from collections.abc import Callable, Mapping
from functools import lru_cache, partial

import sympy

from metis_compile.cost_model.devices import DEVICES
from metis_compile.cost_model.gain import gain
from metis_compile.numerics.formats import FORMATS
from metis_compile.policy.errors import PolicyError, show, unknown_name
from metis_compile.spelling import nearest_name

SIZES = ("m", "n", "k")
SYMBOLS = {name: sympy.Symbol(name, integer=True, positive=True) for name in SIZES}
GAIN = "gain"
_ALLOWED = "a condition holds m, n, k, whole numbers, + - * // %, comparisons, and, or, not, gain('b200') > 1.0"
_LONGEST = 1000  # characters
_DEEPEST = 64  # levels of an expression, whose evaluation recurses
_LARGEST_DEGREE = 6  # sizes in one product or quotient: sympy's time for a symbolic one grows without bound
_TRIED = (  # sizes at which a divisor that is 0 at all of them is taken for 0
    {"m": 1, "n": 1, "k": 1},
    {"m": 7, "n": 3, "k": 5},
    {"m": 3, "n": 11, "k": 2**40 + 15},
    {"m": 2**40 + 15, "n": 5, "k": 13},
    {"m": 17, "n": 2**40 + 15, "k": 2},
    {"m": 2**30 + 3, "n": 2**20 + 7, "k": 2**10 + 7},
)

_COMPARE_NUMBERS: dict[type[ast.cmpop], Callable[[int, int], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_CALCULATE: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_COMPARE: dict[type[ast.cmpop], Callable[..., sympy.Basic]] = {
    ast.Lt: sympy.Lt,
    ast.LtE: sympy.Le,
    ast.Gt: sympy.Gt,
    ast.GtE: sympy.Ge,
    ast.Eq: sympy.Eq,
    ast.NotEq: sympy.Ne,
}
_ARITHMETIC: dict[type[ast.operator], Callable[[sympy.Expr, sympy.Expr], sympy.Expr]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.FloorDiv: lambda a, b: _floor_divide(a, b),
    ast.Mod: lambda a, b: sympy.Mod(a, b),
}


class Condition:
    """A parsed condition. ``text`` is its canonical form, ``expression`` the sympy boolean over SYMBOLS."""

    def __init__(self, text: str, tree: ast.expr) -> None:
        self.text = text
        self._tree = tree

    @property
    def expression(self) -> sympy.Basic:
        """Raises PolicyError where it asks for a gain: a gain is known at numbers alone."""
        return _boolean(_with_gains_decided(self._tree, {}, None), SYMBOLS)

    @property
    def needs_format(self) -> bool:
        """Whether it asks for a gain without saying of which format."""
        return any(isinstance(node, ast.Call) and len(node.args) < 2 for node in ast.walk(self._tree))

    def evaluate(
        self,
        sizes: Mapping[str, int | sympy.Expr],
        hints: Mapping[str, int] | None = None,
        format: str | None = None,
    ) -> bool | sympy.Basic:
        """True or False where the sizes decide it, otherwise the sympy boolean that is left.

        hints: the numbers that the sizes stand for, at which a gain is evaluated; without them, ``sizes`` where these
        are numbers. format: of a gain that names none.

        ``and`` and ``or`` stop at the first operand that decides them, so ``n > 16 and k % (n - 16) == 0`` is
        safe. Raises PolicyError if the sizes make it divide by zero.
        """
        numbers = {name: int(size) for name, size in sizes.items() if isinstance(size, (int, sympy.Integer))}
        try:
            tree = _with_gains_decided(self._tree, {**(hints or {}), **numbers}, format)
            if all(name in numbers for name in SIZES):
                return _truth(tree, numbers)
            result = _boolean(tree, {name: sympy.sympify(sizes[name]) for name in SIZES})
        except ZeroDivisionError:
            given = ", ".join(f"{name} = {sizes[name]}" for name in SIZES)
            raise PolicyError(f"{show(self.text)} divides by zero where {given}", value=self.text) from None
        if result is sympy.true:
            return True
        if result is sympy.false:
            return False
        return result


@lru_cache(maxsize=1024)
def parse_condition(text: str) -> Condition:
    """Parses and checks a condition. Raises PolicyError that names what in it is not allowed."""
    if len(text) > _LONGEST:
        raise _mistake(text, f"is longer than {_LONGEST} characters")
    try:
        tree = ast.parse(" ".join(text.split()), mode="eval").body
        _check_depth(tree, text)
        _check(tree, text, boolean=True)
        _check_degree(tree, text)
        _check_divisors(tree)
        canonical = ast.unparse(tree)
    except SyntaxError as error:
        hint = " (write and, or, not)" if any(sign in text for sign in ("&", "|", "!")) else ""
        raise _mistake(text, f"is not an expression: {error.msg}{hint}") from None
    except ZeroDivisionError:
        raise _mistake(text, "divides by zero") from None
    except (ValueError, RecursionError, MemoryError) as error:
        if isinstance(error, PolicyError):
            raise
        raise _mistake(text, "is not an expression that can be read") from None
    return Condition(canonical, tree)


def _check(node: ast.expr, text: str, *, boolean: bool) -> None:
    """Raises unless ``node`` is made of what is allowed, and is a truth value or a number as it should be."""
    part = partial(ast.unparse, node)  # for errors: at every node, it would take the square of the length
    match node:
        case ast.BoolOp() | ast.UnaryOp(op=ast.Not()) | ast.Compare() if not boolean:
            raise _mistake(text, f"uses {show(part())} as a number; only sizes and whole numbers are numbers")
        case ast.BoolOp(values=operands):
            for operand in operands:
                _check(operand, text, boolean=True)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            _check(operand, text, boolean=True)
        case ast.Compare(left=left, ops=ops, comparators=right):
            for op in ops:
                if type(op) not in _COMPARE:
                    raise _mistake(text, f"compares with something other than < <= > >= == != in {show(part())}")
            if _is_of_gain(node):
                for operand in (left, *right):
                    _check_beside_gain(operand, text)
                return
            for operand in (left, *right):
                _check(operand, text, boolean=False)
        case ast.Constant(value=int()) if isinstance(node.value, bool):
            raise _mistake(text, f"has {part()}; leave the condition out instead")
        case ast.Call(func=ast.Name(id="gain")):
            raise _mistake(text, f"uses {show(part())} by itself; compare it with a number: {part()} > 1.0")
        case ast.Call(func=ast.Name(id=name)):
            nearest = nearest_name(name, [GAIN], cutoff=0.6)
            hint = f"; did you mean {show(nearest)}?" if nearest else ""
            raise _mistake(text, f"has {show(part())}, which is not allowed{hint}", nearest)
        case ast.Name(id=name) if name not in SIZES:
            nearest = nearest_name(name, SIZES)
            hint = f"; did you mean {show(nearest)}?" if nearest else ""
            raise _mistake(text, f"has the unknown name {show(name)}{hint}", nearest)
        case ast.BinOp(op=op) if type(op) not in _ARITHMETIC:
            hint = "; whole-number division is //" if isinstance(op, ast.Div) else ""
            raise _mistake(text, f"has {show(part())}, an arithmetic that is not allowed{hint}")
        case ast.Name() | ast.Constant(value=int()) | ast.BinOp() | ast.UnaryOp(op=ast.USub() | ast.UAdd()) if boolean:
            raise _mistake(
                text,
                f"uses the number {show(part())} as a truth value; compare it: {part()} == 0",
            )
        case ast.Name() | ast.Constant(value=int()):
            pass
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=operand):
            _check(operand, text, boolean=False)
        case ast.BinOp(left=left, right=right_operand):
            _check(left, text, boolean=False)
            _check(right_operand, text, boolean=False)
        case _:
            raise _mistake(text, f"has {show(part())}, which is not allowed")


def _is_of_gain(node: ast.Compare) -> bool:
    """Whether a comparison is of a gain with numbers."""
    return any(
        isinstance(operand, ast.Call) and isinstance(operand.func, ast.Name) and operand.func.id == GAIN
        for operand in (node.left, *node.comparators)
    )


def _check_beside_gain(node: ast.expr, text: str) -> None:
    """Raises unless ``node`` is a number, or a gain of a device and a format that there are."""
    match node:
        case ast.Constant(value=int() | float()) if not isinstance(node.value, bool):
            return
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=ast.Constant(value=int() | float())):
            return
        case ast.Call(func=ast.Name(id="gain"), args=args, keywords=[]) if 1 <= len(args) <= 2:
            for arg, names, what in zip(args, (list(DEVICES), list(FORMATS)), ("device", "format"), strict=False):
                value = arg.value if isinstance(arg, ast.Constant) else None
                if not isinstance(value, str):
                    raise _mistake(text, f"has a gain whose {what} is {ast.unparse(arg)}; write it in quotes")
                if value not in names:
                    error = unknown_name(value, names)
                    raise PolicyError(
                        f"{show(text)} has a gain whose {what} {error.problem}",
                        value=text,
                        allowed=error.allowed,
                        nearest=error.nearest,
                    )
        case ast.Call(func=ast.Name(id="gain")):
            raise _mistake(text, f"has {show(ast.unparse(node))}; a gain takes a device and, if need be, a format")
        case _:
            raise _mistake(text, f"compares a gain with {show(ast.unparse(node))}; it is compared with numbers")


def _with_gains_decided(tree: ast.expr, sizes: Mapping[str, int], format: str | None) -> ast.expr:
    """The tree with each comparison of gains as a comparison of whole numbers that is as true."""
    if not any(isinstance(node, ast.Call) for node in ast.walk(tree)):
        return tree

    class Decide(ast.NodeTransformer):
        def visit_Compare(self, node: ast.Compare) -> ast.expr:  # ast's name
            if not _is_of_gain(node):
                return node
            numbers = [_beside_gain(operand, sizes, format) for operand in (node.left, *node.comparators)]
            pairs = zip(node.ops, numbers, numbers[1:], strict=False)
            holds = all(_COMPARE_NUMBERS[type(op)](a, b) for op, a, b in pairs)  # type: ignore[arg-type]
            return ast.Compare(left=ast.Constant(int(holds)), ops=[ast.Eq()], comparators=[ast.Constant(1)])

    decided: ast.expr = Decide().visit(copy.deepcopy(tree))
    return decided


def _beside_gain(node: ast.expr, sizes: Mapping[str, int], format: str | None) -> float:
    match node:
        case ast.Constant(value=int() | float() as value):
            return value
        case ast.UnaryOp(op=op, operand=operand):
            value = _beside_gain(operand, sizes, format)
            return -value if isinstance(op, ast.USub) else value
        case ast.Call(args=args):
            given = [str(arg.value) for arg in args if isinstance(arg, ast.Constant)]
            if len(given) == 1 and format is None:
                raise PolicyError(
                    f"{show(ast.unparse(node))} of a recipe that leaves the operand high; name a format: "
                    f"{GAIN}({given[0]!r}, 'nvfp4')",
                    value=ast.unparse(node),
                    allowed=tuple(FORMATS),
                )
            if not all(name in sizes for name in SIZES):
                problem = f"{show(ast.unparse(node))} can't be told for sizes that are symbols; give hints"
                raise PolicyError(problem, value=ast.unparse(node))
            named = given[1] if len(given) > 1 else str(format)
            return gain(given[0], named, *(max(sizes[name], 1) for name in SIZES))
    raise AssertionError(f"unchecked node {ast.dump(node)}")


def _check_depth(tree: ast.expr, text: str) -> None:
    """Raises unless the expression is of few levels: everything after this recurses."""
    level: list[ast.AST] = [tree]
    for _ in range(_DEEPEST):
        level = [part for node in level for part in ast.iter_child_nodes(node)]
    if level:
        raise _mistake(text, f"is nested more than {_DEEPEST} deep")


def _check_degree(tree: ast.expr, text: str) -> None:
    """Raises unless every product and quotient holds few sizes."""
    degrees: dict[ast.AST, int] = {}
    for node in reversed(list(ast.walk(tree))):  # what a node is made of before the node
        inner = [degrees[part] for part in ast.iter_child_nodes(node)]
        if isinstance(node, ast.Name):
            degrees[node] = 1
        elif isinstance(node, ast.BinOp) and not isinstance(node.op, (ast.Add, ast.Sub)):
            degrees[node] = sum(inner)
        else:
            degrees[node] = max(inner, default=0)
        if degrees[node] > _LARGEST_DEGREE and isinstance(node, ast.BinOp):
            raise _mistake(
                text, f"multiplies or divides more than {_LARGEST_DEGREE} sizes in {show(ast.unparse(node))}"
            )


def _check_divisors(tree: ast.expr) -> None:
    """Raises ZeroDivisionError for a division by what is 0 whatever the sizes are, such as 0 or m - m."""
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.FloorDiv, ast.Mod)):
            found = set()
            for sizes in _TRIED:
                try:
                    found.add(_value(node.right, sizes))
                except ZeroDivisionError:  # of a divisor within this one
                    continue
            if found == {0}:
                raise ZeroDivisionError


def _truth(node: ast.expr, sizes: Mapping[str, int]) -> bool:
    """What a condition is at whole numbers; ``and`` and ``or`` stop where they are decided."""
    match node:
        case ast.BoolOp(op=op, values=operands):
            join = all if isinstance(op, ast.And) else any
            return join(_truth(operand, sizes) for operand in operands)
        case ast.UnaryOp(operand=operand):
            return not _truth(operand, sizes)
        case ast.Compare(left=left, ops=ops, comparators=right):
            numbers = [_value(operand, sizes) for operand in (left, *right)]
            pairs = zip(ops, numbers, numbers[1:], strict=False)
            return all(_COMPARE_NUMBERS[type(op)](a, b) for op, a, b in pairs)
    raise AssertionError(f"unchecked node {ast.dump(node)}")


def _value(node: ast.expr, sizes: Mapping[str, int]) -> int:
    match node:
        case ast.Name(id=name):
            return sizes[name]
        case ast.Constant(value=int(value)):
            return value
        case ast.UnaryOp(op=op, operand=operand):
            return -_value(operand, sizes) if isinstance(op, ast.USub) else _value(operand, sizes)
        case ast.BinOp(left=left, op=op, right=right):
            return _CALCULATE[type(op)](_value(left, sizes), _value(right, sizes))
    raise AssertionError(f"unchecked node {ast.dump(node)}")


def _boolean(node: ast.expr, sizes: Mapping[str, sympy.Expr]) -> sympy.Basic:
    match node:
        case ast.BoolOp(op=op, values=operands):
            join, decides = (sympy.And, sympy.false) if isinstance(op, ast.And) else (sympy.Or, sympy.true)
            result: sympy.Basic = sympy.true if join is sympy.And else sympy.false
            for operand in operands:
                result = join(result, _boolean(operand, sizes))
                if result is decides:
                    break
            return result
        case ast.UnaryOp(operand=operand):
            return sympy.Not(_boolean(operand, sizes))
        case ast.Compare(left=left, ops=ops, comparators=right):
            numbers = [_number(operand, sizes) for operand in (left, *right)]
            pairs = zip(ops, numbers, numbers[1:], strict=False)
            return sympy.And(*(_COMPARE[type(op)](a, b) for op, a, b in pairs))
    raise AssertionError(f"unchecked node {ast.dump(node)}")


def _number(node: ast.expr, sizes: Mapping[str, sympy.Expr]) -> sympy.Expr:
    match node:
        case ast.Name(id=name):
            return sizes[name]
        case ast.Constant(value=int(value)):
            return sympy.Integer(value)
        case ast.UnaryOp(op=op, operand=operand):
            return -_number(operand, sizes) if isinstance(op, ast.USub) else _number(operand, sizes)
        case ast.BinOp(left=left, op=op, right=right):
            return _ARITHMETIC[type(op)](_number(left, sizes), _number(right, sizes))
    raise AssertionError(f"unchecked node {ast.dump(node)}")


def _floor_divide(a: sympy.Expr, b: sympy.Expr) -> sympy.Expr:
    # sympy.floor(a / b) turns into a floating-point quotient in a guard, which is wrong for a = b = 49.
    from torch.utils._sympy.functions import FloorDiv

    return FloorDiv(a, b)


def _mistake(text: str, what: str, nearest: str | None = None) -> PolicyError:
    return PolicyError(f"{show(text)} {what}; {_ALLOWED}", value=text, allowed=SIZES, nearest=nearest)
