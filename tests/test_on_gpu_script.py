"""`benchmarks/on_gpu.py`: what is cut off loses nothing that came before it."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "on_gpu.py"


def load() -> Any:
    """The script as a module; tests/support has another file of its name."""
    spec = importlib.util.spec_from_file_location("benchmarks_on_gpu", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


on_gpu = load()


@pytest.fixture
def run(tmp_path: Path) -> Any:
    return on_gpu.Run(tmp_path / "out", 3600, True, None)


def results(run: Any) -> dict[str, dict[str, dict[str, object]]]:
    return json.loads((run.out / "results.json").read_text())["steps"]


def test_a_command_that_runs_too_long_is_ended_and_what_it_said_is_kept(run: Any) -> None:
    code = "import time; print('so far', flush=True); time.sleep(600)"
    run.command("smoke", "sleeps", [sys.executable, "-c", code], 6)
    kept = results(run)["smoke"]["sleeps"]
    assert kept["timed_out"] is True
    assert kept["said"] == "so far\n"
    assert (run.out / "smoke.log").read_text() == "$ sleeps\nso far\n\n"


def test_results_are_written_after_each_command(run: Any) -> None:
    run.command("smoke", "fails", [sys.executable, "-c", "raise SystemExit(3)"], 60)
    assert results(run)["smoke"]["fails"]["code"] == 3
    run.end = 0.0
    run.command("smoke", "late", [sys.executable, "-c", ""], 60)
    assert results(run)["smoke"]["late"] == {"skipped": "no time left"}


def test_the_package_is_found_without_being_installed(run: Any) -> None:
    code = (
        "from importlib.metadata import entry_points as e; print([x.value for x in e(group='torch_dynamo_backends')])"
    )
    run.command("smoke", "entry point", [sys.executable, "-c", code], 60)
    assert "metis_compile.backend:metis" in str(results(run)["smoke"]["entry point"]["said"])


def test_one_of_each_kernel_and_format_comes_first() -> None:
    plugin = types.ModuleType("plugin")
    exec(on_gpu.PLUGIN, plugin.__dict__)

    class Item:
        path = Path("test_gemm_on_gpu.py")

        def __init__(self, name: str) -> None:
            self.name, self.originalname = name, name.partition("[")[0]

    names = ["test_gemm[nvfp4-0]", "test_gemm[nvfp4-1]", "test_gemm[mxfp8-0]", "test_quantize[nvfp4-0]"]
    items = [Item(name) for name in names]
    plugin.__dict__["pytest_collection_modifyitems"](items)
    assert [item.name for item in items] == [names[0], names[2], names[3], names[1]]


def test_an_unknown_step_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path), "--steps", "smok", "--rehearse"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "unknown step 'smok'; the steps are smoke, tests, kernels, block, gpt2" in done.stderr
