"""The compiler, top to bottom: every pass in order, and where Inductor runs them.

    Dynamo -> AOTAutograd's joint graph -> JOINT -> Inductor's own joint passes -> partitioner
           -> forward graph, backward graph -> LOWERING -> Inductor's code

A new pass is a function of a `PassContext` in a file of its own, and a line here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import fx

from metis_compile.compat import CustomGraphPass, compile_phase
from metis_compile.options import Config
from metis_compile.passes.context import Pass, PassContext, run_passes, trace
from metis_compile.passes.graph.sites import GraphInputs, Site
from metis_compile.passes.joint.as_matrices import write_as_matrices
from metis_compile.passes.joint.decompose_experts import decompose_experts
from metis_compile.passes.joint.estimate_gradients import estimate_gradients
from metis_compile.passes.joint.find import find, find_sites
from metis_compile.passes.joint.hide_from_pad_mm import hide_from_pad_mm, restore_products
from metis_compile.passes.joint.recompute_policy import prefer_recompute
from metis_compile.passes.joint.resolve import resolve
from metis_compile.passes.joint.rewrite import rewrite
from metis_compile.passes.joint.roles import parameter_placeholders, state_placeholders
from metis_compile.passes.joint.swizzle_scales import swizzle_scales
from metis_compile.passes.lowering.cpu_gemm import lower_cpu_gemms
from metis_compile.passes.lowering.decompose_bfloat16 import decompose_bfloat16
from metis_compile.passes.lowering.decompose_hadamard import decompose_hadamard
from metis_compile.passes.lowering.decompose_residual import decompose_residual
from metis_compile.passes.lowering.fused_quantize import fuse_quantizations
from metis_compile.passes.lowering.lower import lower_quantizations
from metis_compile.passes.lowering.packed_gemm import pack_gemms
from metis_compile.passes.record import Recorder

# Over the joint graph, before Inductor's own joint passes and those of the user.
JOINT: tuple[Pass, ...] = (
    decompose_experts,
    write_as_matrices,
    find,
    resolve,
    estimate_gradients,
    rewrite,
    prefer_recompute,
    swizzle_scales,
)
# Around Inductor's joint passes: before and after them.
BEFORE_INDUCTOR: tuple[Pass, ...] = (hide_from_pad_mm,)
AFTER_INDUCTOR: tuple[Pass, ...] = (restore_products,)
# Over the forward graph and over the backward graph, before Inductor's own passes.
LOWERING: tuple[Pass, ...] = (
    decompose_bfloat16,
    pack_gemms,
    fuse_quantizations,
    decompose_hadamard,
    decompose_residual,
    lower_cpu_gemms,
    lower_quantizations,
)


class JointPasses(CustomGraphPass):
    """JOINT as Inductor's joint_custom_pre_pass, with its records."""

    def __init__(
        self,
        *,
        config: Config,
        inputs: GraphInputs,
        key: str,
        records: Sequence[Recorder],
        report: Callable[[list[Site]], None] | None = None,
    ) -> None:
        """report: called with the sites, once they are rewritten."""
        self.config, self.inputs, self.key, self.records, self.report = config, inputs, key, records, report

    def __call__(self, graph: fx.Graph) -> None:
        if is_nested(graph):
            for record in self.records:
                record.nested(leave_nested(graph))
            return
        for record in self.records:
            record.before(graph, self.inputs)
        trace("metis_joint_before", graph)
        context = PassContext(graph=graph, config=self.config, inputs=self.inputs)
        with compile_phase("metis_joint_pass"):
            run_passes(JOINT, context, "joint")
        trace("metis_joint_after", graph)
        if self.report is not None:
            self.report(context.sites)
        for record in self.records:
            state = [node.name for node in state_placeholders(graph, self.inputs)]
            record.after(graph, context.sites, parameter_placeholders(graph, self.inputs), state)

    def uuid(self) -> str:
        return self.key

    def __deepcopy__(self, memo: Any) -> Any:
        return self  # Inductor copies its config to describe it; the graphs we hold can't be copied


class Passes(CustomGraphPass):
    """A list of passes, as Inductor takes one."""

    def __init__(
        self,
        passes: Sequence[Pass],
        *,
        config: Config,
        key: str,
        stage: str,
        see: Callable[[fx.Graph], None] | None = None,
    ) -> None:
        """see: called with each graph before the passes change it."""
        self.passes, self.config, self.key, self.stage, self.see = passes, config, key, stage, see

    def __call__(self, graph: fx.Graph) -> None:
        if self.see is not None:
            self.see(graph)
        with compile_phase("metis_lowering_pass"):
            run_passes(self.passes, PassContext(graph=graph, config=self.config), self.stage)

    def uuid(self) -> str:
        return self.key

    def __deepcopy__(self, memo: Any) -> Any:
        return self


def is_nested(graph: fx.Graph) -> bool:
    """Whether this is the body of an operator such as torch.cond, which Inductor's passes visit by itself.

    AOTAutograd describes the inputs of the outermost graph (`desc`), and of no other.
    """
    inputs = graph.find_nodes(op="placeholder")
    return bool(inputs) and not any("desc" in node.meta for node in inputs)


def leave_nested(graph: fx.Graph) -> list[Site]:
    """The products of a nested graph, all left alone: what their operands are can't be told from inside it."""
    sites = find_sites(graph, GraphInputs(parameters={}))
    for site in sites:
        site.reason = "inside a nested graph (torch.cond, nested_compile_region, ...)"
    return sites
