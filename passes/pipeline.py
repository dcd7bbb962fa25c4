"""The compiler, top to bottom: what happens to a joint graph between AOTAutograd and Inductor's partitioner."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import fx

from metis_compile.compat import CustomGraphPass, compile_phase, trace_structured
from metis_compile.inspection.capture import Recorder
from metis_compile.options import Config
from metis_compile.passes.graph.sites import GraphInputs, Site
from metis_compile.passes.joint.decompose_experts import decompose_experts
from metis_compile.passes.joint.find import find_sites
from metis_compile.passes.joint.hide_from_pad_mm import hide, restore
from metis_compile.passes.joint.recompute_policy import prefer_recompute
from metis_compile.passes.joint.resolve import resolve
from metis_compile.passes.joint.rewrite import Rewriter
from metis_compile.passes.joint.roles import parameter_placeholders, state_placeholders
from metis_compile.passes.joint.swizzle_scales import swizzle_scales
from metis_compile.passes.lowering.lower import lower
from metis_compile.passes.verify import verify
from metis_compile.policy import PolicyError

log = logging.getLogger("metis_compile.passes")


class SiteError(RuntimeError):
    """An internal error at one site. Names the site, and the option that leaves such a site alone."""


def run_pipeline(graph: fx.Graph, config: Config, inputs: GraphInputs) -> list[Site]:
    """Rewrites a joint (or inference) graph in place and returns its sites, rewritten or left with a reason."""
    check = _checker(graph, config)

    decompose_experts(graph)
    sites = find_sites(graph, inputs)
    check("find")

    for site in sites:
        if site.reason is None:
            with _errors_at(site, config):
                resolve(site, config.policy)

    rewriter = Rewriter(graph, sites, inputs)
    for site in sites:
        if site.reason is None:
            with _errors_at(site, config):
                rewriter.rewrite(site)
    graph.eliminate_dead_code()
    check("rewrite")

    marked = prefer_recompute([s for s in sites if s.reason is None])
    check("save")

    swizzled = swizzle_scales(graph)
    check("swizzle")

    done = sum(s.reason is None for s in sites)
    log.info("rewrote %d of %d products; %d nodes decoded again in backward", done, len(sites), len(marked))
    log.info("%d quantizations write their scales swizzled", len(swizzled))
    return sites


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


@contextmanager
def _errors_at(site: Site, config: Config) -> Iterator[None]:
    """Within: an error raises SiteError, or leaves the site as it was where the options say so."""
    before = [copy.copy(operand) for operand in site.operands]
    try:
        yield
    except PolicyError:
        raise
    except Exception as error:
        if config.on_error == "leave":
            if before:
                site.lhs, site.rhs = before
            site.reason = f"left after an error: {type(error).__name__}: {error}"
            log.warning("%s left in high precision after %s: %s", site, type(error).__name__, error)
            return
        raise SiteError(
            f"metis: can't rewrite the {site}: {type(error).__name__}: {error} "
            f'(options={{"on_error": "leave"}} would leave this site in high precision)'
        ) from error


def _checker(graph: fx.Graph, config: Config) -> Any:
    def check(after: str) -> None:
        if config.verify:
            verify(graph, after)

    return check


class JointPass(CustomGraphPass):
    """Inductor's joint_custom_pre_pass: the pipeline, its log and its records."""

    def __init__(self, *, config: Config, inputs: GraphInputs, key: str, records: Sequence[Recorder]) -> None:
        self.config, self.inputs, self.key, self.records = config, inputs, key, records

    def __call__(self, graph: fx.Graph) -> None:
        if is_nested(graph):
            for record in self.records:
                record.nested(leave_nested(graph))
            return
        for record in self.records:
            record.before(graph)
        _trace("metis_joint_before", graph)
        with compile_phase("metis_joint_pass"):
            sites = run_pipeline(graph, self.config, self.inputs)
        _trace("metis_joint_after", graph)
        for record in self.records:
            state = [node.name for node in state_placeholders(graph, self.inputs)]
            record.after(graph, sites, parameter_placeholders(graph, self.inputs), state)

    def uuid(self) -> str:
        return self.key

    def __deepcopy__(self, memo: Any) -> Any:
        return self  # Inductor copies its config to describe it; the graphs we hold can't be copied


class HidePass(CustomGraphPass):
    """The last joint_custom_pre_pass, and the first joint_custom_post_pass: see `hold`."""

    def __init__(self, *, key: str, restores: bool) -> None:
        self.key, self.restores = key, restores

    def __call__(self, graph: fx.Graph) -> None:
        if self.restores:
            restore(graph)
        else:
            hide(graph)

    def uuid(self) -> str:
        return self.key


class LoweringPass(CustomGraphPass):
    """Inductor's post_grad_custom_pre_pass: metis ops of the forward or the backward graph become what runs."""

    def __init__(self, *, config: Config, key: str) -> None:
        self.config, self.key = config, key

    def __call__(self, graph: fx.Graph) -> None:
        with compile_phase("metis_lowering_pass"):
            lower(graph, cpu_kernels=self.config.cpu_kernels)

    def uuid(self) -> str:
        return self.key


def _trace(name: str, graph: fx.Graph) -> None:
    def text() -> str:
        return fx.GraphModule(graph.owning_module or {}, graph).print_readable(print_output=False)

    trace_structured("artifact", lambda: {"name": name, "encoding": "string"}, payload_fn=text)
    if log.isEnabledFor(logging.DEBUG):
        log.debug("%s\n%s", name, text())
