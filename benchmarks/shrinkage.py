"""How much of a value is left in what it is rounded to: <q, x> / <x, x> - 1, for E2M1 and for E1M2 elements.

    python benchmarks/shrinkage.py --steps 300

arXiv 2606.20381 says that rounding E2M1 to nearest shrinks values, since its steps widen at 2 and at 4, and that E1M2,
whose steps do not, keeps their size. On operands and products of a small GPT in training, in blocks of 16 whose largest
element lies at the largest number exactly (the elements alone), and as the formats nvfp4 and ufp4 have it, with and
without a Hadamard transform. Means over the linears, in percent.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from torch import Tensor

from metis_compile.compare.gemm import Snapshot, snapshots
from metis_compile.conditioning import fixed_signs, hadamard
from metis_compile.numerics import QuantSpec, fake_quantize
from metis_compile.train.settings import Settings

SPECS = {name: QuantSpec.make(name) for name in ("nvfp4", "ufp4")}
Rounding = Callable[[Tensor], Tensor]


def alone(spec: QuantSpec) -> Rounding:
    """Rounds each block under an exact scale of its own."""

    def rounded(x: Tensor) -> Tensor:
        blocks = x.unflatten(1, (-1, 16))
        amax = blocks.abs().amax(2, keepdim=True).clamp(min=1e-30)
        return fake_quantize((blocks / amax).flatten(1), spec, 1).unflatten(1, (-1, 16)).mul(amax).flatten(1)

    return rounded


ROUNDINGS: dict[str, Rounding] = {
    "E2M1": alone(SPECS["nvfp4"]),
    "E1M2": alone(SPECS["ufp4"]),
    **{name: lambda x, spec=spec: fake_quantize(x, spec, 1) for name, spec in SPECS.items()},  # type: ignore[misc]
}


def change(q: Tensor, x: Tensor) -> float:
    """<q, x> / <x, x> - 1, in percent."""
    return 100 * float((q.double() * x.double()).sum() / (x.double() ** 2).sum() - 1)


def error(q: Tensor, x: Tensor) -> float:
    """The norm of q - x over that of x, in percent."""
    return 100 * float((q - x).norm() / x.norm())


def rows(linears: list[Snapshot]) -> list[list[str]]:
    found = []
    for is_turned in (False, True):

        def turned(x: Tensor, on: bool = is_turned) -> Tensor:
            return hadamard(x, 1, fixed_signs()) if on else x

        operands: dict[str, list[Tensor]] = {
            role: [turned(getattr(linear, role)) for linear in linears] for role in ("activation", "weight", "gradient")
        }
        for name, rounded in ROUNDINGS.items():
            label = f"{name}, transformed" if is_turned else name
            q = {role: [rounded(x) for x in tensors] for role, tensors in operands.items()}
            pairs: list[list[tuple[Tensor, Tensor]]] = [
                list(zip(q[role], operands[role], strict=True)) for role in operands
            ]
            made = (a @ w.T for a, w in zip(q["activation"], q["weight"], strict=True))
            exact = (a @ w.T for a, w in zip(operands["activation"], operands["weight"], strict=True))
            pairs.append(list(zip(made, exact, strict=True)))
            cells = [label]
            for each in pairs:
                cells.append(f"{sum(change(*pair) for pair in each) / len(each):+.2f}")
                cells.append(f"{sum(error(*pair) for pair in each) / len(each):.1f}")
            found.append(cells)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="of training in full precision before (default 300)")
    parser.add_argument("--width", type=int, default=256, help="of the GPT (default 256)")
    given = parser.parse_args()
    _, (_, now) = snapshots(Settings(steps=given.steps, width=given.width))
    print("| rounded to nearest | X | error | W | error | G | error | X W^T | error |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for cells in rows(list(now.values())):
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
