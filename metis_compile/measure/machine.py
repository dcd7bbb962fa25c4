"""The machine that numbers were measured on, and the commit that was measured."""

import platform
from datetime import date
from pathlib import Path
from typing import Any

import torch

import metis_compile
from metis_compile.measure.repository import commit_of

__all__ = ["machine"]


def machine() -> dict[str, Any]:
    """Where the numbers come from."""
    return {
        "date": date.today().isoformat(),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        **commit_of(Path(metis_compile.__file__).parent),
    }


def processor() -> str:
    """What the CPU calls itself."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
