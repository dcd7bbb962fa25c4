import subprocess
import sys

from typer.testing import CliRunner

import metis_compile
from metis_compile.cli import app


def test_help_names_every_command() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    assert "train" in result.output
    assert "explain" in result.output
    assert "compare" in result.output
    assert "export" in result.output


def test_version() -> None:
    assert CliRunner().invoke(app, ["--version"]).output == f"metis {metis_compile.__version__}\n"


def test_help_is_quick_because_torch_is_not_imported() -> None:
    code = (
        "import sys; from metis_compile.cli import app; app(['train', '--help'], standalone_mode=False);"
        "heavy = [m for m in ('torch', 'matplotlib', 'numpy', 'sympy') if m in sys.modules];"
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_module_runs_as_a_command() -> None:
    command = [sys.executable, "-m", "metis_compile.cli", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("metis ")
