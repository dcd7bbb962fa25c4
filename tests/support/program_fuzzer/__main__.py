"""`python -m program_fuzzer`, with tests/support in PYTHONPATH: runs cases, and prints each that fails as a program."""

from __future__ import annotations

import argparse
import collections
import logging
import os
import sys
import time
import warnings

import torch

from program_fuzzer.cases import draw_case
from program_fuzzer.shrink import shrink


def main() -> int:
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=200, help="how many cases (default 200)")
    parser.add_argument("--seed", type=int, default=0, help="the number of the first (default 0)")
    parser.add_argument(
        "--as-drawn", action="store_true", help="print failing cases as they are, without making them smaller"
    )
    given = parser.parse_args()
    os.environ["METIS_VERIFY"] = "1"
    warnings.filterwarnings("ignore")
    logging.getLogger("metis_compile").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    started, failed, counts = time.monotonic(), [], collections.Counter()
    for seed in range(given.seed, given.seed + given.cases):
        case = draw_case(seed)
        counts[case.oracle] += 1
        failure = case.failure()
        if failure is not None:
            failed.append(seed)
            if not given.as_drawn:
                case, failure = shrink(case, failure)
            print(f"# case {seed} fails: {failure}\n{case.script}\n", flush=True)
        if sys.stderr.isatty():
            print(f"\r{sum(counts.values())} of {given.cases} cases, {len(failed)} fail", end="", file=sys.stderr)
    of_each = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
    print(f"{given.cases} cases ({of_each}) in {time.monotonic() - started:.0f} s, {len(failed)} fail: {failed}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
