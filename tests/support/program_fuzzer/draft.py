"""Makes a program from a seed. Each statement is tried eagerly, so that all of a program runs."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor, nn

from program_fuzzer.program import HEADER, Program, Statement, train_step
from program_fuzzer.statements import STATEMENTS

SIZES = (1, 2, 3, 5, 8, 16, 17, 24, 32, 33, 40)
SIZES_WEIGHTS = (1, 0.5, 1, 1, 1, 2, 2, 2, 2, 2, 1)
MOST_ELEMENTS = 20_000


def draw_program(seed: int, *, without: frozenset[str] = frozenset(), plain_inputs: bool = False) -> Program:
    """without: names of statements. plain_inputs: no gradient is asked of a matrix that is an input."""
    for attempt in range(20):
        program = Draft(random.Random(f"{seed} {attempt}"), without, plain_inputs).program()
        if program is not None:
            return program
    raise AssertionError(f"seed {seed} makes no program")


class Draft:
    """The values that there are while a program is drawn, each as source and as a tensor."""

    def __init__(self, rng: random.Random, without: frozenset[str], plain_inputs: bool) -> None:
        self.rng, self.without, self.plain_inputs = rng, without, plain_inputs
        self.model = nn.Module()
        self.attributes: dict[str, str] = {}
        self.inputs: dict[str, str] = {}
        self.tracked: set[str] = set()
        self.values: dict[str, Tensor] = {}
        self.statements: list[Statement] = []
        self.scope: dict[str, Any] = {"self": self.model, "more": 0}
        exec(HEADER, self.scope)
        self.last, self.shape = 0, torch.Size()

    def chance(self, p: float) -> bool:
        return self.rng.random() < p

    def choice(self, options: Any) -> Any:
        return self.rng.choice(list(options))

    def size(self) -> int:
        return self.rng.choices(SIZES, SIZES_WEIGHTS)[0]

    def program(self) -> Program | None:
        self.dtype = self.rng.choices(["float32", "bfloat16", "float16", "float64"], [0.76, 0.15, 0.04, 0.05])[0]
        torch.manual_seed(0)
        for index in range(self.rng.randint(1, 2)):
            name = f"x{index}"
            first, *rest = self.choice([(self.size(),), (self.rng.randint(2, 4), self.rng.randint(3, 9))])
            shape = [f"{first} + more", *map(str, rest), str(max(self.size(), 3))]
            make = self.choice(["randn", "skewed"])
            self.inputs[name] = f"{make}({self.rng.randint(0, 999)}, {', '.join(shape)})"
            self.values[name] = self.run(self.inputs[name]).to(getattr(torch, self.dtype))
            self.scope[name] = self.values[name]
            if self.chance(0.7) and not (self.plain_inputs and len(shape) == 2):
                self.tracked.add(name)
        names = [name for name in STATEMENTS if name not in self.without]
        kinds, wanted = set(), self.rng.randint(1, 4)
        for _ in range(6 * wanted):
            if len(self.statements) == wanted:
                break
            kind = self.rng.choices(names, [STATEMENTS[name][1] for name in names])[0]
            if self.add(STATEMENTS[kind][0]):
                kinds.add(kind)
        program = Program(
            inputs=self.inputs,
            tracked=frozenset(self.tracked),
            attributes=self.attributes,
            statements=tuple(self.statements),
            dtype=self.dtype,
            dynamic=self.chance(0.15),
            patterns=self.chance(0.2) or "attention" in kinds,
            kinds=frozenset(kinds),
        ).cleaned()
        return program if self.statements and _trains(program) else None

    def run(self, expression: str) -> Any:
        with torch.no_grad():
            return eval(expression, self.scope)

    def add(self, make: Any) -> bool:
        """Whether the statement runs, and gives what a next one can go on with; otherwise nothing is added."""
        kept, inputs = dict(self.attributes), dict(self.inputs)
        target = f"v{len(self.statements)}"
        try:
            code = make(self)
            if "{out}" not in code:
                code = "{out} = " + code
            after = self.choice(["", "", "torch.tanh", "F.gelu", "F.silu", "0.5 *", "normalized"])
            if after == "normalized":
                code += "\n{out} = F.layer_norm({out}, {out}.shape[-1:])"
            elif after:
                code += f"\n{{out}} = {after}({{out}})"
            code = code.replace("{out}", target)
            with torch.no_grad():
                exec(code, self.scope)
            value = self.scope[target]
        except (RuntimeError, ValueError, IndexError, TypeError, AttributeError, NotImplementedError):
            self.attributes, self.inputs = kept, inputs
            return False
        size = float(value.float().std()) if value.numel() > 1 else 1.0
        if value.dim() == 0 or not 2 <= value.numel() <= MOST_ELEMENTS or not 1e-2 < size < 20:
            self.attributes, self.inputs = kept, inputs
            return False
        self.values[target] = value
        self.statements.append(Statement(target=target, code=code))
        return True

    # expressions

    def value(self, dims: int | None = None) -> str:
        """A value there is, or a view of one, with so many dimensions. Sets `shape` and `last`."""
        for _ in range(50):
            names = list(self.values)
            name = self.choice(names[-2:] if self.chance(0.6) else names)
            expression = name
            have = self.values[name].dim()
            if self.chance(0.35):
                view = self.choice(
                    [
                        ".mT",
                        "[..., 1:, :]",
                        "[..., ::2]",
                        "[..., :-1]",
                        ".flip(-1)",
                        ".mT.contiguous().mT",
                        ".roll(1, -1)",
                    ]
                )
                if have >= 2:
                    expression += view
            if dims is not None and have > dims:
                expression += ".flatten(0, -2)" if dims == 2 and self.chance(0.7) else "[0]" * (have - dims)
            elif dims is not None and have < dims:
                expression += ".unsqueeze(0)" * (dims - have)
                if have == 2 and self.chance(0.5):
                    expression += ".expand(2, -1, -1)"
            try:
                found = self.run(expression)
            except (RuntimeError, IndexError):
                continue
            if found.dim() >= 1 and found.numel() > 0 and (dims is None or found.dim() == dims):
                self.shape, self.last = tuple(found.shape), found.shape[-1]
                return expression
        raise ValueError("no value has so many dimensions")

    def value_of(self, shape: tuple[int, ...]) -> str | None:
        """A value of this shape, if there is one."""
        names = [name for name, value in self.values.items() if tuple(value.shape) == tuple(shape)]
        return self.choice(names) if names else None

    def attribute(self, code: str, prefix: str) -> str:
        """`self.NAME`, set to what `code` makes."""
        name = f"{prefix}{len(self.attributes)}"
        self.attributes[name] = code
        value = self.run(code)
        setattr(self.model, name, value.to(getattr(torch, self.dtype)) if isinstance(value, nn.Module) else value)
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            value.data = value.data.to(getattr(torch, self.dtype))
        return f"self.{name}"

    def argument(self, *shape: int) -> str:
        """An input of this shape."""
        name = f"x{len(self.inputs)}"
        self.inputs[name] = f"randn({self.rng.randint(0, 999)}, {', '.join(map(str, shape))}) / {shape[-2] ** 0.5:.1f}"
        self.scope[name] = self.run(self.inputs[name]).to(getattr(torch, self.dtype))
        if self.chance(0.7) and not self.plain_inputs:
            self.tracked.add(name)
        return name

    def module(self, code: str) -> str:
        return self.attribute(code, "m")

    def parameter(self, *shape: int) -> str:
        """A parameter of this shape, perhaps one that is there already."""
        same = [
            name
            for name, code in self.attributes.items()
            if code.startswith("nn.Parameter") and tuple(getattr(self.model, name).shape) == shape
        ]
        if same and self.chance(0.5):
            return f"self.{self.choice(same)}"
        scale = f" / {max(shape[-2:]) ** 0.5:.1f}" if len(shape) > 1 else ""
        sizes = "".join(f", {size}" for size in shape)
        value = f"randn({self.rng.randint(0, 999)}{sizes}){scale}"
        kind = self.rng.choices(["trained", "frozen", "buffer"], [0.88, 0.06, 0.06])[0]
        if kind == "buffer":
            return self.attribute(f"nn.Buffer({value})", "b")
        return self.attribute(f"nn.Parameter({value}{', requires_grad=False' if kind == 'frozen' else ''})", "w")

    def weight(self, *shape: int) -> str:
        """An expression of parameters, of this shape."""
        *lead, rows, columns = shape
        form = self.rng.randint(0, 21)
        if form == 0:
            return f"{self.parameter(*lead, columns, rows)}.mT"
        if form == 1:
            return f"({self.parameter(*shape)} * {self.parameter(columns)})"
        if form == 2 and columns > 1:
            half = columns // 2
            return (
                f"torch.cat([{self.parameter(*lead, rows, half)}, {self.parameter(*lead, rows, columns - half)}], -1)"
            )
        if form == 3:
            w = self.parameter(*shape)
            return f"({w} / {w}.norm(dim=-1, keepdim=True) * {self.parameter(rows, 1)})"
        if form == 4:
            return f"{self.parameter(*lead, rows + 3, columns + 2)}[..., 1:-2, 2:]"
        if form == 5:
            return f"{self.parameter(*shape)}.mT.contiguous().mT"
        if form == 6 and lead:
            return f"{self.parameter(rows, columns)}.expand({', '.join(map(str, shape))})"
        if form == 7:
            total = 1
            for size in shape:
                total *= size
            return f"({self.parameter(total)} * {total**-0.5 * 2:.2f}).view({', '.join(map(str, shape))})"
        if form == 8 and rows < 40 and columns < 40:
            return f"({self.parameter(*lead, rows, 4)} @ {self.parameter(*lead, 4, columns)})"
        if form == 9:
            return f"{self.parameter(*lead, rows, 2 * columns)}[..., ::2]"
        if form == 10:
            return f"{self.parameter(1, columns)}.expand({', '.join(map(str, shape))})"
        return self.parameter(*shape)


def _trains(program: Program) -> bool:
    """Whether it has gradients, and all that are its can be had."""
    model, inputs = program.build()
    try:
        results = train_step(model, model, inputs())
    except RuntimeError:
        return False
    return any(name.startswith("gradient") for name in results) and all(x.isfinite().all() for x in results.values())
