"""A model's rewritten forward and backward graphs as MLIR, for other compilers to read."""

from metis_compile.mlir.errors import ExportError
from metis_compile.mlir.export import export_mlir
from metis_compile.mlir.exported import Exported
from metis_compile.mlir.signature import Port

__all__ = ["ExportError", "Exported", "Port", "export_mlir"]
