"""A loss and its gradients as one graph, rewritten by a policy for any choice of operands, and run as it is."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from metis_compile.backend import compile_graph
from metis_compile.compat import DynamoUnsupported, aot_input, aot_output, detached_dynamo_state
from metis_compile.inspection.dry_run import run_eagerly
from metis_compile.inspection.undisturbed import undisturbed
from metis_compile.naming.graph_names import names_of
from metis_compile.options import Config
from metis_compile.passes.context import PassContext, PassResult, run_passes
from metis_compile.passes.graph.sites import GraphInputs, Operand, Site
from metis_compile.passes.joint.resolve import resolve
from metis_compile.passes.pipeline import JOINT, LOWERING
from metis_compile.passes.record import capture
from metis_compile.policy import Decision, Policy, Treatment


class BlameError(ValueError):
    """A loss or batches that can't be measured; the message is one line."""


LEFT = Decision(treatment=Treatment(format="high"), recipe="high", rule="left high to measure the others", index=None)
Wanted = Callable[[Site, Operand], bool]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One batch's loss and the gradients of the parameters, float32 or wider."""

    loss: float
    gradients: tuple[Tensor, ...]


class Program:
    """The joint graph of a loss for batches of one shape, and the inputs that each batch gives it."""

    def __init__(self, graph: fx.GraphModule, inputs: GraphInputs, batches: Sequence[Sequence[Any]]) -> None:
        """batches: for each, the values of the inputs of Dynamo's graph."""
        self.graph, self.inputs = graph, inputs
        self._given = [self._flat(values) for values in batches]
        (output,) = graph.graph.find_nodes(op="output")
        kinds = [aot_output(desc)[0] for desc in output.meta["desc"]]
        self._gradients = [i for i, kind in enumerate(kinds) if kind == "gradient"]
        self._loss = kinds.index("output")
        outputs: Any = output.args[0]
        self._gradients = [i for i in self._gradients if outputs[i] is not None]

    def sites(self, config: Config) -> list[Site]:
        """The products that the policy rewrites, with its decisions."""
        context = PassContext(graph=self._copy().graph, config=config, inputs=self.inputs)
        run_passes(JOINT[: JOINT.index(resolve) + 1], context, "joint")
        return [site for site in context.sites if site.reason is None]

    def run(self, config: Config, wanted: Wanted) -> list[Outcome]:
        """The outcome of each batch with the operands quantized that are wanted, and all others in high precision.

        Random bits are the same in each call. Nothing is kept across steps: bases are made anew.
        """

        def select(context: PassContext) -> PassResult:
            for site in context.sites:
                if site.reason is None:
                    _leave(site, wanted)
            return PassResult()

        at = JOINT.index(resolve) + 1
        gm = self._copy()
        context = PassContext(graph=gm.graph, config=config, inputs=self.inputs)
        run_passes((*JOINT[:at], select, *JOINT[at:]), context, "joint")
        run_passes(LOWERING, PassContext(graph=gm.graph, config=config), "lowering")
        gm.recompile()
        return [self._outcome(gm, number, values) for number, values in enumerate(self._given)]

    def run_high(self) -> list[Outcome]:
        """The outcome of each batch with nothing quantized."""
        return [self._outcome(self.graph, number, values) for number, values in enumerate(self._given)]

    def _outcome(self, gm: fx.GraphModule, number: int, values: Sequence[Any]) -> Outcome:
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(number)
            results = gm(*values)
        gradients = (results[i] for i in self._gradients)
        wide = tuple(g.detach().to(torch.promote_types(g.dtype, torch.float32)) for g in gradients)
        return Outcome(loss=float(results[self._loss]), gradients=wide)

    def _copy(self) -> fx.GraphModule:
        return fx.GraphModule(self.graph, copy.deepcopy(self.graph.graph))

    def _flat(self, values: Sequence[Any]) -> list[Any]:
        """What the joint graph takes: the inputs of Dynamo's graph, and one for the gradient of the loss."""
        flat = []
        for node in self.graph.graph.find_nodes(op="placeholder"):
            desc = node.meta["desc"]
            if "Tangent" in type(desc).__name__:
                value = node.meta["val"]
                flat.append(torch.ones(value.shape, dtype=value.dtype, device=value.device))
            else:
                position, _, _ = aot_input(desc)
                assert position is not None
                given = values[position]
                flat.append(given.detach() if isinstance(given, Tensor) else given)
        return flat


@contextmanager
def program(loss: Callable[..., Any], batches: Sequence[Any], config: Config) -> Iterator[Program]:
    """The program of `loss(*batch)` for batches of one shape. Within, the model must not be changed.

    The model, the batches and the generators are left as they were. Raises BlameError for a loss that is no scalar
    tensor with a gradient or not one graph, for no batch, and for batches of several shapes.
    """
    batches = [batch if isinstance(batch, (tuple, list)) else (batch,) for batch in batches]
    if not batches:
        raise BlameError("metis: blame needs a batch at least, got none")
    given: list[list[Any]] = []
    inputs: list[GraphInputs] = []
    high = replace(config, policy=Policy(rules=()))

    def backend(gm: fx.GraphModule, example_inputs: Sequence[Any], **_: Any) -> Callable[..., Any]:
        inputs.append(names_of(gm).write())
        compile_graph(gm, example_inputs, high, {}, listed=False, inner_compile=run_eagerly)

        def run(*args: Any) -> Any:
            given.append(list(args))
            return gm(*args)

        return run

    with detached_dynamo_state(), capture() as captured, undisturbed(loss, batches):
        compiled = torch.compile(loss, backend=backend, fullgraph=True, dynamic=False)
        for batch in batches:
            try:
                with torch.enable_grad():
                    result = compiled(*batch)
            except DynamoUnsupported as error:
                reason = str(error).strip().splitlines()[0]
                raise BlameError(f"metis: the loss must be one graph for torch.compile: {reason}") from error
            _check(result)
            if len(captured.graphs) > 1:
                raise BlameError(
                    f"metis: batches must all have the same shapes, and batch {len(given)} differs from the first"
                )
        joint = captured.graphs[0].joint_before
        if joint is None:
            raise BlameError("metis: nothing of the loss needs a gradient: no parameter has requires_grad")
        yield Program(joint, inputs[0], given)


def _check(loss: Any) -> None:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        what = f"a tensor of the shape {list(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise BlameError(f"metis: the loss must be a scalar tensor, got {what}")
    if not loss.requires_grad:
        raise BlameError("metis: the loss has no gradient: no parameter has requires_grad, or it was detached")


def _leave(site: Site, wanted: Wanted) -> None:
    """Leaves the operands high that are not wanted, and the product where none is."""
    for operand in site.operands:
        if not wanted(site, operand):
            operand.decision = LEFT
    if all(o.decision is None or o.decision.treatment.spec is None for o in site.operands):
        site.reason = LEFT.rule
