"""Tests that another pytest runs are reported as they went there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SUPPORT = Path(__file__).parent / "support"
TESTS = """
import os, pytest

@pytest.fixture
def triton_on_cpu():
    yield os.environ.get("TRITON_INTERPRET")

def test_passes(triton_on_cpu): assert triton_on_cpu == "1"
def test_here(): assert "TRITON_INTERPRET" not in os.environ
@pytest.mark.parametrize("text", ["a b", "c::d"])
def test_fails(triton_on_cpu, text): print("printed"); assert triton_on_cpu == text
def test_skips(triton_on_cpu): pytest.skip("no reason")
def test_crashes(triton_on_cpu): os._exit(7)
def test_after_the_crash(triton_on_cpu): assert triton_on_cpu == "1"
def test_deselected(triton_on_cpu): os._exit(8)
"""


def run(folder: Path, *args: str) -> str:
    (folder / "conftest.py").write_text('pytest_plugins = ["interpreted_tests"]')
    (folder / "pytest.ini").write_text(f"[pytest]\npythonpath = {SUPPORT}\n")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rA", *args]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("TRITON_INTERPRET", "PYTEST_XDIST"))}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True).stdout


def test_outcomes(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(TESTS)
    output = run(tmp_path, "-k", "not deselected")
    for line in (
        "PASSED test_some.py::test_passes",
        "PASSED test_some.py::test_here",
        "FAILED test_some.py::test_fails[a b]",
        "FAILED test_some.py::test_fails[c::d]",
        "FAILED test_some.py::test_crashes",
        "the pytest that interprets Triton ended with exit code 7",
        "PASSED test_some.py::test_after_the_crash",
        "3 failed, 3 passed, 1 skipped, 1 deselected",
        "no reason",
        "assert '1' == 'a b'",
        "printed",
    ):
        assert line in output


def test_what_cannot_be_collected_there(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(
        f"import os\nif 'TRITON_INTERPRET' in os.environ: import no_such_module\n{TESTS}"
    )
    output = run(tmp_path, "-k", "passes or after or here")
    assert "2 failed, 1 passed" in output
    assert "no_such_module" in output


def test_of_several_workers(tmp_path: Path) -> None:
    """Each has a pytest that interprets, which runs the tests of the worker's files and no others."""
    for name in ("one", "two", "three"):
        (tmp_path / f"test_{name}.py").write_text(TESTS)
    output = run(tmp_path, "-p", "xdist", "-n", "2", "--dist", "loadfile", "-k", "passes or here or crash")
    assert "3 failed, 9 passed" in output
