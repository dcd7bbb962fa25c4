"""The rewritten graphs of a model under a policy, without any code being generated."""

from torch import Tensor, nn

from metis_compile.inspection.dry_run import dry_run
from metis_compile.options import read_options
from metis_compile.passes.record import CapturedGraph

__all__ = ["rewritten_graphs"]


def rewritten_graphs(model: nn.Module, tokens: Tensor, policy: str) -> list[CapturedGraph]:
    """What `capture()` shows of one forward of ``model`` on int64 [batch, context] tokens."""
    config, patches = read_options({"policy": policy}, None)
    return dry_run(model, [tokens], {}, config, patches).captured.graphs
