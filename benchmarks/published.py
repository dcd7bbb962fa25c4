"""The Metis authors' published layers, imported from a checkout that the user has, in place of a model's linears."""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import nn

from metis_compile.bench.errors import BenchError
from metis_compile.conditioning.rank import resolve_rank

__all__ = ["FORMS", "check_checkout", "published_layers"]

REPOSITORY = "the Metis authors' published code (github.com/sii-research/Metis)"
FILES = ("Metis/__init__.py", "Metis/bitlinear.py", "Metis/quant.py")
FORMAT = "nvfp4e2m1b"  # their name of NVFP4
SCRIPT_RANK, PAPER_RANK, ITERATIONS = 16, 0.015, 2
FORMS = {
    "script": f"as their training script: weights split once at rank {SCRIPT_RANK}, gradients in each step",
    "paper": f"as their paper: weights, activations and gradients split in each step, at {PAPER_RANK:.1%} of the rank",
}


def check_checkout(path: Path) -> None:
    """Raises BenchError unless ``path`` holds the files that are imported, and what these import is there."""
    missing = [name for name in FILES if not (path / name).is_file()]
    if missing:
        raise BenchError(f"{path} is not a checkout of {REPOSITORY}: it has no {missing[0]}")
    if importlib.util.find_spec("scipy") is None:
        raise BenchError(f"{REPOSITORY} imports scipy, which is not installed: pip install scipy")


def published_layers(path: Path, form: str, *, compiled: bool) -> Callable[[nn.Module, int], nn.Module]:
    """A change to a GPT: every linear of its blocks becomes one of theirs, in W4A4G4, with weights of its own.

    Their layers keep their settings in their classes: one form in a process. compiled: whether the rest of the model
    is going to be, as far as Dynamo gets around theirs; these stay eager, as it cannot trace them and would compile
    their parts anew in each step.
    Raises BenchError if ``path`` is not a checkout of their code, or of one that has no such layers.
    """
    check_checkout(path)
    module = load(path)
    layer = getattr(module, "BitLinear", None)
    if layer is None:
        raise BenchError(f"{path} is not a checkout of {REPOSITORY} that is known here: it has no Metis.BitLinear")

    def change(model: nn.Module, seed: int) -> nn.Module:
        for name, linear in list(model.named_modules()):
            if type(linear) is nn.Linear and name.startswith("blocks."):
                parent, _, last = name.rpartition(".")
                made = make(layer, linear, form, path)
                if compiled:
                    made.forward = torch.compiler.disable(made.forward)
                setattr(model.get_submodule(parent), last, made)
        return model

    return change


def make(layer: Any, linear: nn.Linear, form: str, path: Path) -> Any:
    """One of their layers of this linear's size. Raises BenchError if it takes other settings than are known here."""
    with there_is_no_gpu(linear.weight.device):
        try:
            return layer(
                linear.in_features,
                linear.out_features,
                args=arguments(form, linear),
                bias=linear.bias is not None,
            )
        except (AttributeError, KeyError, TypeError) as error:
            raise BenchError(f"{path} holds another version of {REPOSITORY} than is known here: {error!r}") from error


def arguments(form: str, linear: nn.Linear) -> SimpleNamespace:
    """What their layers read of their command line's arguments."""
    once = form == "script"
    rank = SCRIPT_RANK if once else resolve_rank(PAPER_RANK, *linear.weight.shape)
    tensors = ("forward_input", "forward_weight", "backward_input", "backward_weight", "backward_outputgrad")
    return SimpleNamespace(
        device=linear.weight.device,
        enable_lowbit=True,
        enable_te=False,
        enable_nv_recipe=False,
        **{f"q_{name}": FORMAT for name in tensors},
        # Weights: split when the layer is made, or in each forward.
        enable_forward_svd=once,
        forward_svd_rank=rank if once else -1,
        forward_svd_warmup_steps=0,
        enable_forward_svd_intime=not once,
        forward_lowrank_svd_intime=rank,
        enable_activation_svd=not once,
        activation_lowrank_svd=rank,
        activation_lowrank_niter=ITERATIONS,
        activation_broadcast_dim=-1,
        enable_backward_svd=True,
        backward_lowrank_svd=rank,
        backward_lowrank_niter=ITERATIONS,
        backward_broadcast_dim=-1,
        gradacc_broadcast=False,
        gradacc_broadcast_steps=1,
    )


def load(path: Path) -> ModuleType:
    """Their package, from this checkout and no other."""
    sys.path.insert(0, str(path))
    try:
        with transformer_engine():
            module = importlib.import_module("Metis")
    except ImportError as error:
        raise BenchError(f"cannot import {REPOSITORY} from {path}: {error}") from None
    finally:
        sys.path.remove(str(path))
    if not Path(str(module.__file__)).is_relative_to(path.resolve()):
        raise BenchError(f"another package named Metis is imported already, from {module.__file__}")
    return module


@contextmanager
def transformer_engine() -> Iterator[None]:
    """Within: it can be imported, where it is not installed as an empty module.

    Their file does so at its top, for layers that are not used here; there is no build of it without CUDA.
    """
    if importlib.util.find_spec("transformer_engine") is not None:
        yield
        return
    package, part = ModuleType("transformer_engine"), ModuleType("transformer_engine.pytorch")
    package.pytorch = part  # type: ignore[attr-defined]
    stand_in = {"transformer_engine": package, "transformer_engine.pytorch": part}
    sys.modules.update(stand_in)
    try:
        yield
    finally:
        for name in stand_in:
            del sys.modules[name]


@contextmanager
def there_is_no_gpu(device: torch.device) -> Iterator[None]:
    """Within, on the CPU: ``Tensor.cuda()``, which their split of a weight calls whatever its device, does nothing."""
    if device.type != "cpu":
        yield
        return
    tensor: Any = torch.Tensor
    kept = tensor.cuda
    tensor.cuda = lambda self, *args, **kwargs: self
    try:
        yield
    finally:
        tensor.cuda = kept
