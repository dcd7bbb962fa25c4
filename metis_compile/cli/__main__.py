"""``python -m metis_compile.cli`` is ``metis``."""

from metis_compile.cli.root import app

app(prog_name="metis")
