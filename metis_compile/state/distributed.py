"""What is kept, within a checkpoint of torch.distributed.checkpoint."""

from __future__ import annotations

import io
import os
import re
from typing import Any

import torch
from torch import nn

from metis_compile.state.checkpoint import load_state_dict, state_dict

_OF = "kept_by_rank_"


class KeptState:
    """What `metis_compile.state_dict` gives, as a Stateful object of torch.distributed.checkpoint.

        dcp.save({"model": ..., "metis": KeptState(model)}, checkpoint_id=folder)
        dcp.load({"model": ..., "metis": KeptState(model, folder)}, checkpoint_id=folder)

    Every process has bases of its own, of the rows that it sees, and saves them as one entry. A process loads the entry
    of its rank; where fewer processes saved, that of its rank modulo their number. Before the first step and after,
    wrapped or not, as for `load_state_dict`.

    model: as for `state_dict`. checkpoint: to load from, a folder or a StorageReader; needed where more processes load
    than have saved. strict: as for `load_state_dict`. Raises ValueError for a checkpoint that holds nothing of this
    kind, and what `load_state_dict` raises.
    """

    def __init__(self, model: nn.Module, checkpoint: Any = None, *, strict: bool = True) -> None:
        self.model, self.checkpoint, self.strict = model, checkpoint, strict

    def state_dict(self) -> dict[str, Any]:
        """One entry, of bytes: to save, and to be read into."""
        rank = _rank()
        if self.checkpoint is not None:
            saved = self._saved()
            return {f"{_OF}{saved[rank % len(saved)]}": b""}
        written = io.BytesIO()
        torch.save(state_dict(self.model), written)
        return {f"{_OF}{rank}": written.getvalue()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the entry that was read."""
        entries = [value for key, value in state_dict.items() if key.startswith(_OF)]
        if len(entries) != 1 or not isinstance(entries[0], bytes):
            raise ValueError(f"metis: KeptState must be given the one entry that it saved, got {sorted(state_dict)}")
        if not entries[0]:
            raise ValueError("metis: nothing was read of what is kept: the checkpoint was saved without KeptState")
        kept = torch.load(io.BytesIO(entries[0]), map_location="cpu", weights_only=True)
        load_state_dict(self.model, kept, strict=self.strict)

    def _saved(self) -> list[int]:
        """The ranks whose entries the checkpoint has."""
        reader = self.checkpoint
        if isinstance(reader, (str, os.PathLike)):
            from torch.distributed.checkpoint import FileSystemReader

            reader = FileSystemReader(reader)
        names = reader.read_metadata().state_dict_metadata
        found = [re.fullmatch(rf"(?:.*\.)?{_OF}(\d+)", name) for name in names]
        ranks = sorted({int(match[1]) for match in found if match is not None})
        if not ranks:
            raise ValueError(
                f"metis: {self.checkpoint} holds nothing that metis kept: it was saved without KeptState; leave it out "
                "of what is loaded, and bases begin anew"
            )
        return ranks


def _rank() -> int:
    there = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_rank() if there else 0
