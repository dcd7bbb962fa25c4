"""`import metis_compile.integrations.accelerate`, and Accelerate knows the backend "metis" by its name.

After it `Accelerator(dynamo_backend="metis")`, `TrainingArguments(torch_compile_backend="metis")`,
`TorchDynamoPlugin(backend="metis", options={"policy": "mxfp8"})` and `ACCELERATE_DYNAMO_BACKEND=metis` in the
environment are what they are for Accelerate's own backends. `accelerate launch` is a program of its own, that imports
nothing of yours before it looks at its arguments: write

    python -m metis_compile.integrations.accelerate launch --dynamo_backend metis train.py

in its place, and the import in train.py.
"""

from __future__ import annotations

import sys
from enum import Enum
from typing import Any

import accelerate
from accelerate.utils import DynamoBackend

NAME = "METIS"  # Accelerate writes the names of its backends in capitals


def register(backends: Any = DynamoBackend) -> None:
    """Makes "METIS" a value of Accelerate's enum of backends, if it is not one already.

    By Enum's own hook for values that are not members, so that what else Accelerate does with them stays as it is.
    Raises ImportError if Accelerate's backends are no longer an enum of texts.
    """
    if _knows(backends):
        return
    if not (isinstance(backends, type) and issubclass(backends, Enum) and issubclass(backends, str)):
        raise ImportError(_changed(f"{backends!r} is no enum of texts"))
    metis = str.__new__(backends, NAME)
    metis._name_, metis._value_ = NAME, NAME
    theirs = backends._missing_

    def missing(cls: Any, value: object) -> Any:
        return metis if value == NAME else theirs(value)

    backends._missing_ = classmethod(missing)  # type: ignore[assignment]
    if not _knows(backends):
        raise ImportError(_changed(f"it does not take {NAME!r}"))


def _knows(backends: Any) -> bool:
    try:
        return str(backends(NAME).value) == NAME
    except (ValueError, TypeError, AttributeError):
        return False


def _changed(how: str) -> str:
    return (
        f"metis: accelerate {accelerate.__version__} keeps its backends in another way than metis knows: {how}. "
        'Compile the model before it is prepared, which needs nothing of this: model.compile(backend="metis")'
    )


def main() -> None:
    """The command `accelerate`, with "metis" among the choices of --dynamo_backend."""
    from accelerate.commands.accelerate_cli import main as accelerate_main
    from accelerate.commands.config import config_utils

    choices = getattr(config_utils, "DYNAMO_BACKENDS", None)
    if not isinstance(choices, list):
        raise SystemExit(_changed("accelerate.commands has no list DYNAMO_BACKENDS"))
    if NAME not in choices:
        choices.append(NAME)
    sys.argv[0] = "accelerate"
    accelerate_main()


register()

if __name__ == "__main__":
    main()
