"""What docs/kernels.md says of instructions is what the compiler makes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from cross_compile import cross_compile_generated
from long_tail import sampled
from torch import Tensor
from torch._inductor.utils import run_and_get_code

from metis_compile.compat import autotune
from metis_compile.kernels.gemm.op import GEMM
from metis_compile.kernels.gemm.operand import operand_of
from metis_compile.numerics import QuantSpec, encode

pytest.importorskip("triton")
PAGE = (Path(__file__).parents[2] / "docs" / "kernels.md").read_text()


def table() -> list[tuple[str, int, str, str]]:
    """(format, compute capability, instruction, kind) of each cell of the page's table."""
    lines = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("|")]
    header = next(cells for cells in lines if cells[0] == "operands")
    rows = lines[lines.index(header) + 2 :]
    found = []
    for cells in rows[: next((i for i, row in enumerate(rows) if len(row) != len(header)), len(rows))]:
        for capability, cell in zip(header[1:], cells[1:], strict=True):
            instruction, kind = re.fullmatch(r"`([\w.:]+)` (\S+)", cell).groups()  # type: ignore[union-attr]
            found.append((cells[0], int(capability.removeprefix("sm_")), instruction, kind.strip("`")))
    return found


def test_the_table_is_all_there() -> None:
    assert {(name, capability) for name, capability, _, _ in table()} == {
        (name, capability) for name in ("nvfp4", "mxfp4", "mxfp8", "fp8") for capability in (80, 90, 100, 120)
    }


@pytest.mark.parametrize(
    ("name", "capability", "instruction", "kind"),
    sampled(table(), lambda name, *_: name == "nvfp4"),
    ids=lambda value: str(value),
)
def test_instructions(
    triton_on_cpu: Any, monkeypatch: pytest.MonkeyPatch, name: str, capability: int, instruction: str, kind: str
) -> None:
    from torch._inductor.runtime.triton_heuristics import CachingAutotuner

    from metis_compile.kernels.gemm import lowering

    spec = QuantSpec.make(name)
    parts = encode(torch.randn(16, 32), spec, 1)
    operand = operand_of(parts, str(spec), 1, 1)
    first = lowering.template_for(operand, operand, capability).configs(operand, operand, capability)[0]
    lowering.register_gemm()
    triton_on_cpu.capability = capability
    monkeypatch.setattr(lowering, "configs_for", lambda configs, m, n: [first])
    monkeypatch.setattr(lowering, "autotune", lambda called, choices, *rest: autotune(called, choices[:1], *rest))
    monkeypatch.setattr(CachingAutotuner, "run", lambda *given, **how: None)  # it is the code that counts

    def product(a: list[Tensor], b: list[Tensor]) -> Tensor:
        return GEMM(a, str(spec), 1, 32, 1, b, str(spec), 1, 32, 1, [])  # type: ignore[no-any-return]

    _, (code,) = run_and_get_code(torch.compile(product), parts, parts)
    ((_, built),) = cross_compile_generated(code, capability).items()
    lines = [line for line in built.ptx.splitlines() if re.search(rf"\b{re.escape(instruction)}\b", line)]
    assert any(kind in line for line in lines), lines[:3]
