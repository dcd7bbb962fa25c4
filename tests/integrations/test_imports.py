"""What the package imports by itself: nothing of the libraries that it has integrations for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_backend_needs_none_of_the_libraries() -> None:
    code = (
        "import sys, metis_compile.backend, metis_compile.inspection.explain, metis_compile.integrations\n"
        "print(sorted({'accelerate', 'transformers', 'lightning', 'peft', 'trl'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr
