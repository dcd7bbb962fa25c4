"""Runs exported MLIR on the CPU, compiled by IREE, to compare with torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import iree.compiler
import iree.runtime
import ml_dtypes
import numpy as np
import torch
from torch import Tensor

from metis_compile import Exported
from metis_compile.mlir import Port
from metis_compile.mlir.exported import Program

# numpy has no name of its own for these
NARROW = {
    torch.bfloat16: ml_dtypes.bfloat16,
    torch.float8_e4m3fn: ml_dtypes.float8_e4m3fn,
    torch.float8_e5m2: ml_dtypes.float8_e5m2,
    torch.float8_e8m0fnu: ml_dtypes.float8_e8m0fnu,
}


def run(mlir: str, name: str, inputs: Sequence[Tensor], dtypes: Sequence[torch.dtype]) -> list[Tensor]:
    """The results of the function `name`, whose dtypes are given: MLIR does not say whether an i8 has a sign."""
    cpu = os.environ.get("METIS_TEST_IREE_CPU", "host")  # with fused multiply-adds, where the machine has them
    flags = [f"--iree-llvmcpu-target-cpu={cpu}"]
    compiled = iree.compiler.compile_str(mlir, target_backends=["llvm-cpu"], extra_args=flags)
    context = iree.runtime.SystemContext(config=iree.runtime.Config("local-sync"))
    context.add_vm_module(iree.runtime.VmModule.copy_buffer(context.instance, compiled))
    results = context.modules.module[name](*(_to_numpy(x) for x in inputs))
    results = results if isinstance(results, (list, tuple)) else [results]
    return [_to_torch(result, dtype) for result, dtype in zip(results, dtypes, strict=True)]


def _to_numpy(x: Tensor) -> Any:
    x = x.detach().contiguous()
    if x.dtype not in NARROW:
        return x.numpy()
    narrow = NARROW[x.dtype]
    return x.view(torch.int16 if x.dtype == torch.bfloat16 else torch.uint8).numpy().view(narrow)


def _to_torch(result: Any, dtype: torch.dtype) -> Tensor:
    array = np.asarray(result.to_host() if hasattr(result, "to_host") else result)
    flat = torch.from_numpy(np.ascontiguousarray(array).reshape(-1).view(np.uint8).copy())
    return flat.view(dtype).reshape(array.shape)


def values_for(exported: Exported, seed: int = 1) -> dict[tuple[str, str], Tensor]:
    """Something for every argument that is not made by forward: parameters small, states as a first step has them."""
    generator = torch.Generator().manual_seed(seed)
    values: dict[tuple[str, str], Tensor] = {}
    for port in (port for program in exported.programs for port in program.inputs if port.kind != "saved"):
        key = (port.kind, port.name)
        if key in values:
            continue
        if port.kind == "seed":
            values[key] = torch.randint(0, 2**63 - 1, port.shape, generator=generator)
        elif port.kind == "state":
            values[key] = torch.rand(port.shape, generator=generator) * 2 - 1
        elif not port.dtype.is_floating_point:
            values[key] = torch.randint(0, 30, port.shape, generator=generator).to(port.dtype)
        else:
            scale = 0.2 if port.kind == "parameter" else 1.0
            values[key] = (torch.randn(port.shape, generator=generator) * scale).to(port.dtype)
    return values


def eager_and_compiled(program: Program, values: dict[tuple[str, str], Tensor]) -> list[tuple[Port, Tensor, Tensor]]:
    """Each result of the program, from torch and from IREE; what torch saved for backward goes into `values`."""
    inputs = [values[port.kind, port.name] for port in program.inputs]
    eager = program.graph(*(x.clone() for x in inputs))
    compiled = run(program.mlir, program.name, inputs, [port.dtype for port in program.outputs])
    values.update(
        {("saved", port.name): x for port, x in zip(program.outputs, eager, strict=True) if port.kind == "saved"}
    )
    return list(zip(program.outputs, eager, compiled, strict=True))
