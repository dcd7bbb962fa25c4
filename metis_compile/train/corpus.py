"""The text a run trains on: the sources of Python's own standard library, byte by byte."""

import hashlib
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from metis_compile.train.errors import TrainError
from metis_compile.train.settings import derived_seed

__all__ = ["Corpus", "library_sources", "load_file", "load_library"]

# Tests are mostly tables of cases; site-packages differ from machine to machine.
SKIPPED = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "_bundled"}
FEWEST_SOURCES = 100  # a real standard library has about 600
HELD_OUT = 10  # every tenth source is for validation


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Text split in two. Both parts are uint8 [bytes]."""

    source: str  # where it came from, for people
    train: Tensor
    validation: Tensor
    digest: str  # sha256 of both parts and of where they are split

    @classmethod
    def from_bytes(cls, source: str, train: bytes, validation: bytes) -> "Corpus":
        """A corpus of these two parts."""
        hasher = hashlib.sha256()
        for part in (train, validation):
            hasher.update(f"{len(part)}:".encode())
            hasher.update(part)
        return cls(source=source, train=as_tensor(train), validation=as_tensor(validation), digest=hasher.hexdigest())

    def require(self, context: int) -> None:
        """TrainError unless each part holds a sequence of ``context`` tokens and the token after it."""
        for name, part in (("training", self.train), ("validation", self.validation)):
            if part.numel() <= context:
                raise TrainError(
                    f"{self.source} leaves {part.numel()} bytes for {name}, a context of {context} needs more"
                )

    def batch(self, *, seed: int, step: int, batch: int, context: int) -> tuple[Tensor, Tensor]:
        """Tokens and what follows each, int64 [batch, context] both; a function of seed and step alone."""
        generator = torch.Generator().manual_seed(derived_seed("batch", seed, step))
        starts = torch.randint(self.train.numel() - context, (batch,), generator=generator)
        return windows(self.train, starts, context)

    def validation_batches(self, *, count: int, batch: int, context: int) -> list[tuple[Tensor, Tensor]]:
        """``count`` batches spread evenly over the validation text, the same for every run."""
        last = self.validation.numel() - context - 1  # the last place with a token after the sequence
        places = count * batch
        starts = torch.tensor([i * last // max(1, places - 1) for i in range(places)])
        return [windows(self.validation, chunk, context) for chunk in starts.split(batch)]


def windows(text: Tensor, starts: Tensor, context: int) -> tuple[Tensor, Tensor]:
    """The sequences of ``text`` at ``starts`` [n] and the same one token later, int64 [n, context] each."""
    tokens = text[starts[:, None] + torch.arange(context + 1)].long()
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def library_sources(folder: Path) -> list[Path]:
    """The ``.py`` files under ``folder`` in an order that does not depend on the file system."""
    found = []
    for path in folder.rglob("*.py"):
        relative = path.relative_to(folder)
        if not SKIPPED.intersection(relative.parts[:-1]):
            found.append(relative)
    return [folder / relative for relative in sorted(found, key=lambda p: p.as_posix())]


def load_library(folder: Path | None = None) -> Corpus:
    """The standard library of the running Python, whole files held out for validation.

    Raises TrainError where the sources are not on the machine (some packagings ship compiled files only).
    """
    folder = Path(sysconfig.get_path("stdlib")) if folder is None else folder
    sources = library_sources(folder)
    if len(sources) < FEWEST_SOURCES:
        raise TrainError(
            f"found {len(sources)} Python sources in {folder}, where the standard library's should be: "
            "use a Python that ships them, or give a text file with --text"
        )
    held_out = [p for i, p in enumerate(sources) if i % HELD_OUT == HELD_OUT - 1]
    kept = [p for i, p in enumerate(sources) if i % HELD_OUT != HELD_OUT - 1]
    return Corpus.from_bytes(
        f"{len(sources)} sources of Python's standard library in {folder}",
        train=b"".join(p.read_bytes() for p in kept),
        validation=b"".join(p.read_bytes() for p in held_out),
    )


def load_file(path: Path) -> Corpus:
    """One file's bytes, its last tenth for validation. Raises TrainError if it cannot be read."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TrainError(f"cannot read the text {path}: {error.strerror}") from None
    cut = len(data) - len(data) // HELD_OUT
    return Corpus.from_bytes(str(path), train=data[:cut], validation=data[cut:])


def as_tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
