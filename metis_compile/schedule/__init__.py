"""Stages of a training run: `metis_compile.advance(model, step)` says where it is, and graphs follow."""

from metis_compile.schedule.position import advance, clear, position_of
from metis_compile.schedule.staged import Staged, stage_of

__all__ = ["Staged", "advance", "clear", "position_of", "stage_of"]
