"""What a worker process tells the one that started it: a JSON object a line, on stdout."""

import json
from typing import Any

__all__ = ["emit"]


def emit(**values: Any) -> None:
    """Print one line: step= and note= after each step; last of all done=, interrupted= or error=."""
    print(json.dumps(values), flush=True)
