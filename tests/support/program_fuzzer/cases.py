"""The cases, by their numbers: a program, a policy, and what must hold of them."""

from __future__ import annotations

import random
import traceback
from dataclasses import dataclass

from program_fuzzer import policies
from program_fuzzer.draft import draw_program
from program_fuzzer.oracles import ORACLES, Mismatch
from program_fuzzer.program import Program

# what the emulation can't know: what is inside of an operator, and which products are attention
OPAQUE = frozenset({"fused_attention"})
BY_STRUCTURE = OPAQUE | {"attention"}


@dataclass(frozen=True, kw_only=True)
class Case:
    seed: int
    oracle: str  # a key of ORACLES
    program: Program
    policy: str  # as text

    def failure(self) -> str | None:
        """None where all holds; otherwise what went wrong, its kind first."""
        try:
            ORACLES[self.oracle](self.program, self.policy)
        except Mismatch as error:
            return f"Mismatch: {error}"
        except Exception as error:
            cause = error.__cause__ or error
            where = traceback.extract_tb(error.__traceback__)[-1]
            return f"{type(error).__name__} at {where.name}: {str(error)[:1500]} [{type(cause).__name__}]"
        return None

    @property
    def script(self) -> str:
        """A file that runs this case, with tests/support in PYTHONPATH."""
        p = self.program
        lines = [
            f'"""Case {self.seed}, {self.oracle}: PYTHONPATH=.:tests/support python FILE"""',
            "",
            p.source,
            "",
            f'POLICY = """\n{self.policy}\n"""',
            "",
            'if __name__ == "__main__":',
            "    from program_fuzzer.reproduce import reproduce",
            "",
            f"    how = dict(dtype={p.dtype!r}, dynamic={p.dynamic}, patterns={p.patterns})",
            f"    reproduce(Program, inputs, POLICY, {self.oracle!r}, **how)",
        ]
        return "\n".join(lines)


def draw_case(seed: int) -> Case:
    rng = random.Random(f"case {seed}")
    oracle = rng.choices(list(ORACLES), [0.15, 0.35, 0.25, 0.25])[0]
    if oracle == "nearest":
        alike = rng.random() < 0.4
        program = draw_program(seed, without=OPAQUE if alike else BY_STRUCTURE, plain_inputs=False)
        return Case(seed=seed, oracle=oracle, program=program, policy=policies.nearest(rng, alike=alike))
    policy = {
        "high": lambda: 'extends = "high"',
        "splits": lambda: policies.splits(rng),
        "anything": lambda: policies.preset_or_policy(rng),
    }[oracle]()
    return Case(seed=seed, oracle=oracle, program=draw_program(seed), policy=policy)
