"""What part of each parameter a process computes with: its shard under tensor parallelism, else the whole."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from metis_compile.compat import dtensor_layout, fsdp_layouts


def shares(model: nn.Module) -> dict[int, list[int]]:
    """id of each parameter of two dimensions or more -> the shape that products of this process have of it.

    FSDP2 shards for storage alone: what it gathers is whole. FSDP1's flat parameters are left out.
    """
    stored = fsdp_layouts(model)
    found = {}
    for parameter in model.parameters():
        if parameter.dim() < 2:
            continue
        shape = list(parameter.shape)
        layout = stored[id(parameter)] if id(parameter) in stored else dtensor_layout(parameter)
        here = None if layout is None else layout[0].get_coordinate()
        if layout is not None and here is not None:
            mesh, placements = layout
            for i, placement in enumerate(placements):
                if placement.is_shard():
                    chunk = -(-shape[placement.dim] // mesh.size(i))
                    shape[placement.dim] = max(0, min(chunk, shape[placement.dim] - here[i] * chunk))
        found[id(parameter)] = shape
    return found


@dataclass(frozen=True)
class OtherShare:
    """A parameter of which another share was computed with, when a state was saved, than is now."""

    had: list[int]
    has: list[int]

    def changes(self, columns: int) -> bool:
        """Whether a basis of so many columns may be one of a dimension that differs."""
        same = {a == b for a, b in zip(self.had, self.has, strict=True) if a == columns}
        return same != {True}
