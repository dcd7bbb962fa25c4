"""What is measured: plain Inductor, plain Inductor under bfloat16 autocast, or a policy."""

from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console

from metis_compile.bench.errors import BenchError
from metis_compile.compare.run_config import BASELINE, RunConfig
from metis_compile.compat import bf16_gemm
from metis_compile.train.settings import Settings
from metis_compile.train.trainer import Trainer
from metis_compile.train.variant import FULL_PRECISION

__all__ = ["AUTOCAST", "PLAIN", "autocast", "check_policies", "name_of", "trainer"]

PLAIN = BASELINE  # plain Inductor: what all ratios are to
AUTOCAST = "bfloat16 autocast"  # plain Inductor too


def check_policies(policies: Sequence[str]) -> list[str]:
    """``policies`` without repetitions.

    Raises PolicyError for one that cannot be loaded, BenchError for names that would look the same in a table.
    """
    texts = list(dict.fromkeys(policies))
    names = [name_of(text) for text in texts]
    for text, name in zip(texts, names, strict=True):
        if names.count(name) > 1:
            raise BenchError(f"two policies have the name {name!r}: rename one of the files")
        RunConfig(text=text).variant()
    return texts


def autocast(settings: Settings, console: Console) -> list[str]:
    """Plain Inductor under bfloat16 autocast, which is measured beside float32 unasked.

    Not on a CPU without bfloat16 instructions, where a round of it takes minutes: a line says so.
    """
    if settings.dtype != "float32":
        return []
    if settings.device.startswith("cpu") and bf16_gemm() is None:
        console.print(f"{AUTOCAST} is left out: this CPU has no bfloat16 instructions", highlight=False)
        return []
    return [AUTOCAST]


def name_of(text: str) -> str:
    """For tables."""
    return text if text == AUTOCAST else RunConfig(text=text).name


def trainer(text: str, settings: Settings) -> Trainer:
    """A new model of these settings, compiled as the candidate says."""
    if text == AUTOCAST:
        return Trainer(FULL_PRECISION, replace(settings, dtype="bfloat16"))
    return Trainer(RunConfig(text=text).variant(), settings)
