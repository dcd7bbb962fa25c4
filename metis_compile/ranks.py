"""Which data-parallel rank this process draws random bits for.

After one `torch.manual_seed` all ranks draw the same seed. Rounding that is to average out over data-parallel ranks
needs noise of its own on each; ranks that compute one product together (tensor parallelism) need the same. The rank is
read when a graph runs (`metis::of_rank`), so that one compiled graph, and one cache of them, serves all ranks.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import torch.distributed as dist
from torch import nn

from metis_compile.compat import Layout, dtensor_layout, fsdp_layouts

__all__ = ["clear", "data_parallel_rank", "draws_by_rank", "in_many_processes", "note", "set_data_parallel_rank"]

_stated: int | None = None
_together: list[frozenset[int]] = []  # ranks that compute products with this one
_compiled_for_one = False  # whether a graph was compiled that draws the same bits on every rank


def set_data_parallel_rank(rank: int | None) -> None:
    """States which data-parallel rank this process is, for the random bits that it draws; None: find out again.

    rank: 0 or more, the same on all processes that compute one product together and another for each replica of the
    model. Call it before the first step. It is needed where :func:`data_parallel_rank` is wrong: tensor parallelism
    without DTensors, or parameters that DTensors shard for storage alone. Raises ValueError for what is no rank, and
    RuntimeError where a model was compiled already that can't be told its rank.
    """
    global _stated
    if rank is not None and (not isinstance(rank, int) or isinstance(rank, bool) or rank < 0):
        raise ValueError(f"metis: a data-parallel rank must be an integer of 0 or more, or None, got {rank!r}")
    if rank and not draws_by_rank() and _compiled_for_one:
        raise RuntimeError(
            f"metis: set_data_parallel_rank({rank}) comes after a model was compiled, for one process: call it before "
            "the first step, or torch.compiler.reset() before it"
        )
    _stated = rank


def data_parallel_rank() -> int:
    """The data-parallel rank that random bits are drawn for: what was stated, else what torch.distributed tells.

    That is the lowest rank among those that hold shards of the same parameters for the same data, as the DTensors of
    compiled models say (tensor parallelism), and the process's own rank where there are none. 0 without
    torch.distributed.
    """
    if _stated is not None:
        return _stated
    if not in_many_processes():
        return 0
    return min({dist.get_rank()}.union(*_together))


def draws_by_rank() -> bool:
    """Whether graphs that are compiled now ask for the rank: not in one process that was told none."""
    return _stated is not None or in_many_processes()


def note(model: nn.Module | None, parameters: Iterable[Any]) -> None:
    """Takes from a model that is being compiled, and from the parameters of a graph of it, who computes with this rank.

    Raises ValueError where DTensors tell of several groups of ranks that overlap, and no rank was stated.
    """
    global _compiled_for_one
    _compiled_for_one = _compiled_for_one or not draws_by_rank()
    if _stated is not None or not in_many_processes() or "torch.distributed.tensor" not in sys.modules:
        return
    meshes: dict[tuple[Any, ...], tuple[Any, set[int]]] = {}  # with the dimensions that parameters are cut along
    for mesh, placements in _layouts(model, parameters):
        key = (*mesh.mesh.shape, *mesh.mesh.flatten().tolist())
        cut = meshes.setdefault(key, (mesh, set()))[1]
        cut.update(i for i, placement in enumerate(placements) if not placement.is_replicate())
    for mesh, cut in meshes.values():
        group = _group(mesh, cut)
        if len(group) > 1 and group not in _together:
            _together.append(group)
    for one, other in itertools.combinations(_together, 2):
        if not (one <= other or other <= one):
            raise ValueError(
                f"metis: rank {dist.get_rank()} computes with ranks {sorted(one)} and with ranks {sorted(other)}, so "
                "that nothing tells which draw the same random bits: call metis_compile.set_data_parallel_rank(rank)"
            )


def in_many_processes() -> bool:
    """Whether torch.distributed runs more than one process."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def clear() -> None:
    """Forgets what compiled models told of ranks, not what was stated."""
    global _compiled_for_one
    _together.clear()
    _compiled_for_one = False


def _layouts(model: nn.Module | None, parameters: Iterable[Any]) -> Iterator[Layout]:
    """The mesh and placements of each parameter that is a DTensor while it computes.

    Not of the experts of a mixture, [experts, ., .], that are spread over ranks: these hold different data.
    """
    stored = {} if model is None else fsdp_layouts(model)
    for parameter in itertools.chain([] if model is None else model.parameters(), parameters):
        layout = stored[id(parameter)] if id(parameter) in stored else dtensor_layout(parameter)
        if layout is not None and not (parameter.dim() == 3 and any(p.is_shard(0) for p in layout[1])):
            yield layout


def _group(mesh: Any, cut: set[int]) -> frozenset[int]:
    """The ranks that differ from this one in the dimensions `cut` of a mesh alone."""
    here = mesh.get_coordinate()
    if here is None:
        return frozenset()
    index = tuple(slice(None) if i in cut else at for i, at in enumerate(here))
    return frozenset(mesh.mesh[index].flatten().tolist())
