"""Ways to make thin factors orthonormal: how long they take here, and how orthonormal the result is.

    OMP_NUM_THREADS=1 python benchmarks/orthonormalization.py --out benchmarks/results/orthonormalization

- householder: torch.linalg.qr, what the CPU uses;
- cholesky: two passes of Cholesky QR in float64 of columns with 1e-6 of noise added, what other devices use;
- cholesky, float32: the same in float32, in three passes of which the first two shift the Gram matrix's diagonal by
  its rounding error;
- its noise alone: what of both is spent on drawing it.

All get columns of norm 1, made from [n, k] float32 inputs: random; of rank 2; the first column and 1e-6 of the others;
random times 1e-30 and times 1e30. "off" is the largest element of |Q^T Q - 1|, "outside" how far the farthest column of
the input lies off the span of Q, each the largest over seeds. Times are CPU seconds of one thread, which what else runs
disturbs little, of random input, eager as in a step, the methods in turn; medians, and the ratio to householder of the
same round with its quartiles.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metis_compile.conditioning.orthonormal import orthonormalize, unit_columns
from metis_compile.measure.checkout import commit
from metis_compile.measure.machine import machine
from metis_compile.measure.markdown import markdown_table
from metis_compile.measure.ratio import Ratio
from metis_compile.numerics import uniform_noise

SIZES = ((512, 8), (1024, 16), (2048, 31), (4096, 64))
SEEDS = 3
REFERENCE = "householder"
INPUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "random": lambda y: y,
    "rank 2": lambda y: y[:, :2] @ torch.randn(2, y.shape[1], generator=torch.Generator().manual_seed(1)),
    "near": lambda y: y[:, :1] + 1e-6 * y,
    "tiny": lambda y: y * 1e-30,
    "huge": lambda y: y * 1e30,
}


def cholesky_float32(y: Tensor) -> Tensor:
    """[n, k] -> [n, k] float32. What `orthonormalize` does in float64, with what float32 needs to get through."""
    y = unit_columns(y)[0]
    n, k = y.shape
    q = y + (noise(y) - 0.5) * (1e-6 * (12 / n) ** 0.5)
    identity = torch.eye(k)
    for shift in (k * torch.finfo(torch.float32).eps, k * torch.finfo(torch.float32).eps, 0.0):
        factor = torch.linalg.cholesky_ex(q.mT @ q + shift * identity)[0]
        q = q @ torch.linalg.solve_triangular(factor, identity, upper=False).mT
    return q


def noise(y: Tensor) -> Tensor:
    """Uniform in [0, 1), of y's shape: that of `orthonormalize`."""
    return uniform_noise(torch.zeros(1, dtype=torch.int64), 0, y.shape)


METHODS: dict[str, Callable[[Tensor], Tensor]] = {
    "householder": lambda y: orthonormalize(y, "householder"),
    "cholesky": lambda y: orthonormalize(y, "cholesky"),
    "cholesky, float32": cholesky_float32,
}
TIMED = METHODS | {"its noise alone": noise}


def off(q: Tensor) -> float:
    """The largest element of |Q^T Q - 1|; in float64."""
    q = q.double()
    return float((q.mT @ q - torch.eye(q.shape[1]).double()).abs().max())


def outside(q: Tensor, y: Tensor) -> float:
    """The largest distance of a column of y, of norm 1, from the span of Q; in float64."""
    unit, q = unit_columns(y)[0].double(), q.double()
    return float((unit - q @ (q.mT @ unit)).norm(dim=0).max())


def quality(method: Callable[[Tensor], Tensor], n: int, k: int) -> dict[str, dict[str, float]]:
    """By input, the largest `off` and `outside` over SEEDS."""
    found = {}
    for name, make in INPUTS.items():
        inputs = [make(torch.randn(n, k, generator=torch.Generator().manual_seed(seed))) for seed in range(SEEDS)]
        results = [(method(y), y) for y in inputs]
        found[name] = {"off": max(off(q) for q, _ in results), "outside": max(outside(q, y) for q, y in results)}
    return found


def times(n: int, k: int, rounds: int) -> dict[str, list[float]]:
    """CPU seconds of this thread by method, one a round. Meant for torch.set_num_threads(1)."""
    y = torch.randn(n, k, generator=torch.Generator().manual_seed(0))
    taken: dict[str, list[float]] = {name: [] for name in TIMED}
    for at in range(-2, rounds):  # two to warm up
        for name, method in TIMED.items():
            start = time.thread_time()
            method(y)
            if at >= 0:
                taken[name].append(time.thread_time() - start)
    return taken


def measure(n: int, k: int, rounds: int) -> list[dict[str, Any]]:
    """A row for each method, and one for a part of them, which has no result of its own."""
    taken = times(n, k, rounds)
    rows = []
    for name in TIMED:
        ratio = Ratio.of(taken[name], taken[REFERENCE])
        rows.append(
            {
                "n": n,
                "k": k,
                "method": name,
                "milliseconds": 1e3 * statistics.median(taken[name]),
                "ratio": [ratio.median, ratio.low, ratio.high],
                "inputs": quality(METHODS[name], n, k) if name in METHODS else {},
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    headings = ["n, k", "method", "ms", f"/ {REFERENCE}", *(f"off, {name}" for name in INPUTS), "outside"]
    cells = [
        [
            f"{row['n']}, {row['k']}",
            row["method"],
            f"{row['milliseconds']:.2f}",
            "{:.2f}x ({:.2f}-{:.2f})".format(*row["ratio"]),
            *(f"{row['inputs'][name]['off']:.0e}" if row["inputs"] else "-" for name in INPUTS),
            f"{max(found['outside'] for found in row['inputs'].values()):.0e}" if row["inputs"] else "-",
        ]
        for row in rows
    ]
    return markdown_table(headings, cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=201)
    parser.add_argument("--out", type=Path, default=Path("runs/orthonormalization"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    about = {"machine": machine(), "commit": commit(), "rounds": arguments.rounds}
    rows = [row for n, k in SIZES for row in measure(n, k, arguments.rounds)]
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "orthonormalization.json").write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")
    (arguments.out / "orthonormalization.md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
