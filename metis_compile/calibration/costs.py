"""What policies cost on a device: the loss is captured once, and rewritten by each policy."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

from torch import fx

from metis_compile.cost_model import Device
from metis_compile.inspection.dry_run import dry_run
from metis_compile.inspection.explain import explanation_of
from metis_compile.inspection.prediction import Prediction
from metis_compile.options import Config
from metis_compile.passes.context import PassContext, run_passes
from metis_compile.passes.pipeline import JOINT
from metis_compile.passes.record import CapturedGraph
from metis_compile.policy import Policy
from metis_compile.sensitivity.program import BlameError


class Costs:
    """Predictions as those of `explain`, of a step of `loss(*batch)`."""

    def __init__(
        self, loss: Callable[..., Any], batch: Sequence[Any], config: Config, device: Device, *, alike: bool
    ) -> None:
        """config: its policy has the recipes of all that will be asked about: what they keep across steps is an input
        of the graph. alike: no policy will tell one block from another, so that one is looked at for all."""
        self.device, self._config = device, config
        run = dry_run(loss, batch, {}, config, {}, once=alike)
        if len(run.captured.graphs) != 1:
            raise BlameError(f"metis: the loss must be one graph for torch.compile, got {len(run.captured.graphs)}")
        (self._graph,), self._cuts = run.captured.graphs, run.cuts
        self.modules = frozenset(site.module for site in self._graph.sites)

    def of(self, policy: Policy) -> Prediction:
        graph = self._graph
        assert graph.joint_before is not None
        assert graph.inputs is not None
        after = fx.GraphModule(graph.joint_before, copy.deepcopy(graph.joint_before.graph))
        config = Config(policy=policy, verify=self._config.verify, cpu_kernels=self._config.cpu_kernels)
        context = PassContext(graph=after.graph, config=config, inputs=graph.inputs)
        run_passes(JOINT, context, "joint")
        rewritten = CapturedGraph(
            joint_before=graph.joint_before, joint_after=after, sites=context.sites, parameters=graph.parameters
        )
        return explanation_of(policy, [rewritten], self._cuts).cost(self.device)
