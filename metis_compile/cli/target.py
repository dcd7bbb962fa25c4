"""``MODULE:FUNCTION`` on the command line: a function that returns a model and its inputs."""

import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer

from metis_compile.cli.errors import UserError
from metis_compile.spelling import did_you_mean

__all__ = ["Target", "call", "find_function", "model_and_inputs"]

Target = Annotated[
    str,
    typer.Argument(
        metavar="MODULE:FUNCTION",
        help="A function that returns (model, args) or (model, args, kwargs); MODULE may be a .py file.",
    ),
]


def find_function(target: str) -> Any:
    """What ``module:function`` names. Raises UserError with what is wrong in it."""
    name, colon, attribute = target.rpartition(":")
    if not (colon and name and attribute):
        raise UserError(f"a target is module:function or file.py:function, got {target!r}")
    module = load_file(Path(name)) if name.endswith(".py") else load_module(name)
    found = getattr(module, attribute, None)
    if callable(found):
        return found
    hint = did_you_mean(attribute, [n for n in vars(module) if callable(getattr(module, n))], cutoff=0.6)
    raise UserError(f"{name} has no function {attribute!r}{hint}")


def load_module(name: str) -> ModuleType:
    """Import ``name``, the current folder included. Raises UserError if there is no such module."""
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # A module that exists and imports a missing one is not a mistake in the target.
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise
        raise UserError(f"there is no module {error.name!r} here or among the installed ones") from None


def load_file(path: Path) -> ModuleType:
    """Run a Python file as a module. Raises UserError if it is not there."""
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    sys.path.insert(0, str(path.parent.resolve()))
    spec.loader.exec_module(module)
    return module


def call(target: str, function: Any) -> Any:
    """What the user's function returns. Raises UserError if it cannot be called without arguments."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # written in C: the call itself will tell
        return function()
    try:
        signature.bind()
    except TypeError as error:
        raise UserError(f"{target} is called without arguments, and takes {signature}: {error}") from None
    return function()


def model_and_inputs(target: str, returned: Any) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """(model, args, kwargs) from what the user's function returned."""
    if isinstance(returned, tuple) and len(returned) in (2, 3) and callable(returned[0]):
        model, args, *rest = returned
        kwargs = rest[0] if rest else {}
        if isinstance(kwargs, dict):
            return (
                model,
                args if isinstance(args, tuple) else tuple(args) if isinstance(args, list) else (args,),
                kwargs,
            )
    raise UserError(f"{target} must return (model, args) or (model, args, kwargs), got {describe(returned)}")


def describe(value: Any) -> str:
    """What a value is, in few words."""
    if isinstance(value, tuple):
        return f"a tuple of {len(value)}: {', '.join(type(item).__name__ for item in value)}"
    return type(value).__name__
