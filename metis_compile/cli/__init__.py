"""The ``metis`` command."""

from metis_compile.cli.root import app

__all__ = ["app"]
