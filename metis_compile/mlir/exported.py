"""What `export_mlir` returns: two programs as text, and what goes in and out of them."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import fx

from metis_compile.mlir.signature import Port


@dataclass(frozen=True, kw_only=True)
class Program:
    """One exported function and the private functions that it calls."""

    name: str  # "forward" or "backward"; the function is called that too
    mlir: str
    inputs: tuple[Port, ...]  # in the function's order
    outputs: tuple[Port, ...]
    functions: tuple[str, ...]  # names of the private functions, in the order of their first call
    graph: fx.GraphModule = field(repr=False, compare=False)  # the same in torch: takes inputs, returns outputs

    def __str__(self) -> str:
        lines = [f"{self.name}: {len(self.mlir.splitlines()):,} lines, {len(self.functions)} private functions"]
        lines += [f"  takes   {port}" for port in self.inputs]
        lines += [f"  returns {port}" for port in self.outputs]
        return "\n".join([*lines, *(f"  calls   @{name}" for name in self.functions)])

    def to_dict(self) -> dict[str, Any]:
        return {
            "inputs": [port.to_dict() for port in self.inputs],
            "outputs": [port.to_dict() for port in self.outputs],
            "functions": list(self.functions),
        }


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A model under a policy, in MLIR. Prints as a list of what goes in and out."""

    policy: str
    dialect: str
    programs: tuple[Program, ...]  # forward, and backward where something needs a gradient

    @property
    def forward(self) -> str:
        """The forward's MLIR."""
        return self.programs[0].mlir

    @property
    def backward(self) -> str | None:
        """The backward's MLIR; None where nothing needs a gradient."""
        return self.programs[1].mlir if len(self.programs) > 1 else None

    def to_dict(self) -> dict[str, Any]:
        """All but the MLIR, as plain values, fit for JSON."""
        programs = {program.name: program.to_dict() for program in self.programs}
        return {"policy": self.policy, "dialect": self.dialect, **programs}

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Writes `forward.mlir`, `backward.mlir` and `signature.json` (`to_dict()`) into a folder, made if need be.

        Returns their paths. A `backward.mlir` of an earlier export is removed where there is none now.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "backward.mlir").unlink(missing_ok=True)
        written = []
        for program in self.programs:
            written.append(folder / f"{program.name}.mlir")
            written[-1].write_text(program.mlir)
        written.append(folder / "signature.json")
        written[-1].write_text(json.dumps(self.to_dict(), indent=2) + "\n")
        return written

    def __str__(self) -> str:
        return "\n".join([f"policy {self.policy}, {self.dialect}", *map(str, self.programs)])
