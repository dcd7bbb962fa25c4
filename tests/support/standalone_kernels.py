"""The C++ kernels in programs of their own, for compilers and CPUs that this Python is not for.

A program reads its arguments and x from standard input and writes codes, scales and values to standard output.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import torch
from torch import Tensor

from metis_compile.kernels.cpu.compile import source
from metis_compile.kernels.parts import tensor_target
from metis_compile.numerics import QuantSpec
from metis_compile.numerics.blocks import BlockLayout
from metis_compile.numerics.quantize import part_shapes

# as Inductor compiles them, without its choice of a CPU
FLAGS = ["-std=c++20", "-O2", "-fopenmp", "-ffp-contract=off", "-fno-math-errno", "-Wno-psabi"]
MAIN = r"""
#include <cstdio>
int main() {
  struct { int64_t outer, n, inner, pack_rows, codes, scales, bytes, seed, stream; float target, unused; } a;
  if (fread(&a, sizeof a, 1, stdin) != 1) return 2;
  const int64_t numel = a.outer * a.n * a.inner;
  std::vector<uint8_t> x(a.bytes), codes(a.codes), scales(a.scales + 4);
  std::vector<float> values(numel);
  if (fread(x.data(), 1, a.bytes, stdin) != (size_t)a.bytes) return 3;
  float enc = 1, dec = 1;
  if (a.target > 0) metis_tensor_scale(x.data(), numel, a.target, &enc, &dec, 1);
  metis_quantize(x.data(), a.outer, a.n, a.inner, (int)a.pack_rows, 1, values.data(), codes.data(), scales.data(), &enc,
                 &dec, &a.seed, a.stream, 1);
  fwrite(codes.data(), 1, a.codes, stdout);
  fwrite(scales.data(), 1, a.scales, stdout);
  fwrite(&dec, 4, 1, stdout);
  fwrite(values.data(), 4, numel, stdout);
  return 0;
}
"""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """How programs are compiled and run."""

    name: str
    compiler: str
    flags: tuple[str, ...] = ()
    runner: str | None = None

    @property
    def missing(self) -> list[str]:
        return [tool for tool in (self.compiler, self.runner) if tool is not None and shutil.which(tool) is None]


AARCH64 = Machine(name="aarch64", compiler="aarch64-linux-gnu-g++", flags=("-static",), runner="qemu-aarch64")
SANITIZED = Machine(
    name="undefined behaviour refused",
    compiler="g++",
    flags=("-fsanitize=undefined,bounds", "-fno-sanitize-recover=all", "-O1"),
)


class ProgramError(AssertionError):
    """The compiler or the program failed: what it said."""


@cache
def program(machine: Machine, spec: QuantSpec, dtype: torch.dtype) -> Path:
    quantize, scale = source("quantize", spec, dtype), source("tensor_scale", None, dtype)
    # what both include is there once
    scale = scale[scale.index('extern "C" void metis_tensor_scale') :]
    text = f"#include <vector>\n{quantize}\n{scale}\n{MAIN}"
    path = Path(mkdtemp(prefix="metis-kernels-"), "kernel")
    path.with_suffix(".cpp").write_text(text)
    command = [machine.compiler, *FLAGS, *machine.flags, str(path.with_suffix(".cpp")), "-o", str(path)]
    _done(subprocess.run(command, capture_output=True, check=False))
    return path


def quantized(machine: Machine, x: Tensor, spec: QuantSpec, axis: int, seed: int, stream: int) -> list[Tensor]:
    """What `encode` returns for a contiguous matrix, then the values that it stores, float32."""
    layout = BlockLayout.of(spec, 2, axis)
    rows, columns = x.shape
    if len(layout.tiles) == 2:
        outer, n, inner, pack_rows = 1, rows, columns, layout.axis == 0
    else:
        outer, n, inner, pack_rows = (1, rows, columns, False) if layout.axis == 0 else (rows, columns, 1, False)
    codes_shape, scales_shape = part_shapes(spec, x.shape, axis)
    codes = torch.Size(codes_shape).numel()
    dtype = spec.fmt.scale_dtype
    scales = 0 if scales_shape is None else torch.Size(scales_shape).numel() * dtype.itemsize
    data = x.contiguous().view(torch.uint8).numpy().tobytes()
    numbers = (outer, n, inner, pack_rows, codes, scales or 4, len(data), seed, stream)
    given = struct.pack("<9q2f", *numbers, tensor_target(spec) or 0.0, 0.0) + data
    path = program(machine, spec, x.dtype)
    command = [str(path)] if machine.runner is None else [machine.runner, str(path)]
    made = _done(subprocess.run(command, input=given, capture_output=True, check=False))
    flat = torch.frombuffer(bytearray(made), dtype=torch.uint8)
    parts = [flat[:codes].reshape(codes_shape)]
    if scales_shape is not None:
        parts.append(flat[codes : codes + scales].clone().view(dtype).reshape(scales_shape))
    rest = flat[codes + (scales or 4) :].clone().view(torch.float32)
    if tensor_target(spec) is not None:
        parts.append(rest[0])
    return [*parts, rest[1:].reshape(x.shape)]


def _done(process: subprocess.CompletedProcess[bytes]) -> bytes:
    if process.returncode != 0:
        raise ProgramError(f"{process.args} ended with {process.returncode}: {process.stderr.decode()[-3000:]}")
    return process.stdout
