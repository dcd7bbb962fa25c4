"""Find every matrix product of a joint graph, and tell what its operands are from what they depend on."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import fx

from metis_compile.compat import OpOverload, aot_input, aot_output
from metis_compile.passes.context import PassContext, PassResult
from metis_compile.passes.graph.products import GROUPED, OPERANDS, PRODUCTS, SUPPORTED_DTYPES
from metis_compile.passes.graph.provenance import block_counts, block_of, module_name, op_name, schema_name, source_line
from metis_compile.passes.graph.sites import Gemm, GraphInputs, Operand, Site
from metis_compile.passes.graph.views import ValueNumbers, history, root, same, shape_of, strip_views
from metis_compile.passes.joint.early_gradients import find_early_gradients
from metis_compile.passes.joint.kinds import Kinds
from metis_compile.passes.joint.roles import Dependencies

aten = torch.ops.aten

_OPAQUE_EXPERTS = "experts of a dtype that is not quantized, of two, or whose ends lie on another device"
# products that are listed and left alone
LEFT_ALONE: dict[str, str] = {
    "aten::convolution": "a convolution: only matrix products are rewritten",
    "aten::convolution_backward": "a convolution: only matrix products are rewritten",
    "aten::_trilinear": "a bilinear form: only matrix products are rewritten",
    "aten::_scaled_mm": "already quantized: the model multiplies scaled float8 operands itself",
    "aten::_scaled_mm_v2": "already quantized: the model multiplies scaled operands itself",
    "aten::_scaled_grouped_mm": "already quantized: the model multiplies scaled float8 operands itself",
    "aten::_scaled_grouped_mm_v2": "already quantized: the model multiplies scaled operands itself",
    "aten::_int_mm": "already quantized: an int8 product",
    "aten::_weight_int8pack_mm": "already quantized: an int8 weight",
    "aten::_weight_int4pack_mm": "already quantized: an int4 weight",
    "aten::_weight_int4pack_mm_for_cpu": "already quantized: an int4 weight",
    "transformers::grouped_mm_fallback": _OPAQUE_EXPERTS,
    "transformers::grouped_mm_fallback_backward": _OPAQUE_EXPERTS,
    "aten::_sparse_mm": "a sparse operand has no dense blocks to quantize",
    "aten::_sparse_semi_structured_mm": "a sparse operand has no dense blocks to quantize",
}
# of those, the ones whose first two tensors are a matrix product's, so that its size is known
_SIZED = {name for name in LEFT_ALONE if name.split("::")[1].startswith(("_scaled", "_int", "_weight"))}
_PACKETS = {target.overloadpacket for target in PRODUCTS if isinstance(target, OpOverload)}
_FLOAT8 = {
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
}
_INT8 = {torch.int8, torch.uint8}
_QUANTIZED_SEARCH = 8  # how many elementwise ops lie between a stored low-bit tensor and the product at most


def find(context: PassContext) -> PassResult:
    """Lists the matrix products of the joint graph in `context.sites`."""
    context.sites = find_sites(context.graph, context.inputs)
    return PassResult(left=[(str(site), site.reason) for site in context.sites if site.reason is not None])


def find_sites(graph: fx.Graph, inputs: GraphInputs) -> list[Site]:
    """Lists every matrix product of `graph` as a `Site`, with roles from dependencies and never from shapes.

    An operand that depends on a tangent is a gradient; one that depends on parameters and on no data is a weight (and
    the second operand of `linear`, whatever it is made of); any other is an activation, and so are both of attention,
    which is known by its softmax. A product with a gradient operand is the dgrad of an activation or the wgrad of a
    weight.
    """
    depends = Dependencies(graph, inputs)
    numbers = ValueNumbers(graph)
    blocks = block_counts(graph, inputs.depths)
    kinds = Kinds(graph, depends, inputs)
    sites: list[Site] = []
    fprops: dict[int, list[Site]] = defaultdict(list)
    backward: list[tuple[Site, Site]] = []
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        if node.target in PRODUCTS or _is_grouped(node):
            site = _product(node, depends, numbers, kinds)
            partner = _partner(site, fprops)
            if partner is not None:
                _take_from_forward(site, partner)
                backward.append((site, partner))
            site.gemm = _gemm(site, partner, depends)
            if site.gemm == "fprop" and site.seq is not None:
                fprops[site.seq].append(site)
            site.reason = _unsupported(site)
        elif (name := schema_name(node)) in LEFT_ALONE:
            site = _left_alone(node, depends, LEFT_ALONE[name])
        elif getattr(node.target, "overloadpacket", None) in _PACKETS:
            site = _left_alone(node, depends, "a product with a dtype of its own for its result (out_dtype)")
        elif node.target in GROUPED:
            site = _left_alone(node, depends, "a grouped product with a bias or a dtype of its own, or of another form")
        else:
            continue
        site.block = block_of(site.module, blocks)
        sites.append(site)
    find_early_gradients(graph, sites, depends)
    kinds.settle(sites)
    for site, partner in backward:
        site.kind, site.kind_reason = partner.kind, partner.kind_reason
    return sites


def _product(node: fx.Node, depends: Dependencies, numbers: ValueNumbers, kinds: Kinds) -> Site:
    site = _bare_site(node, depends)
    left, right = (node.args[i] for i in OPERANDS[node.target])
    assert isinstance(left, fx.Node)
    assert isinstance(right, fx.Node)
    rank = len(shape_of(left))
    site.lhs = _operand(left, rank - 1, depends, numbers)
    site.rhs = _operand(right, len(shape_of(right)) - 2, depends, numbers)
    if node.target in GROUPED:
        site.op = "grouped_mm"
        site.offs = node.args[2] if len(node.args) > 2 else node.kwargs["offs"]  # type: ignore[assignment]
    given = site.op == "linear" or (site.offs is not None and not site.groups_contracted)
    if given and site.lhs.role == site.rhs.role == "activation":
        site.rhs.role = "weight"  # what the second argument of these is, whoever computed it
    if site.gemm == "fprop" and site.offs is None:
        why = kinds.attention(node, left, right)
        if why is not None:
            site.kind, site.kind_reason = "attention", why
            site.lhs.role = site.rhs.role = "activation"
        elif site.lhs.role == site.rhs.role == "activation":
            _tell_arguments(site, depends)
    site.m, site.k = shape_of(left)[-2:]
    site.n = shape_of(right)[-1]
    site.batch = shape_of(left)[0] if rank == 3 else 1
    site.weights = tuple(name for o in site.operands if o.role == "weight" for name in depends.parameters(o.base))
    return site


def _tell_arguments(site: Site, depends: Dependencies) -> None:
    """Of a product without parameters: a matrix that the caller passes and trains is a weight; the right one of two."""
    for operand in (site.rhs, site.lhs):
        if operand is not None and root(operand.base) in depends.arguments:
            operand.role = "weight"
            return


def _operand(node: fx.Node, axis: int, depends: Dependencies, numbers: ValueNumbers) -> Operand:
    base, base_axis, views = strip_views(node, axis, most=len(shape_of(node)))  # a matrix, of one sequence too
    return Operand(
        node=node,
        role=depends.role(node),
        axis=base_axis,
        base=numbers[base],
        views=views,
        kept_as=tuple(n.name for n in history(node)),
    )


def _bare_site(node: fx.Node, depends: Dependencies) -> Site:
    return Site(
        node=node,
        gemm="dgrad" if node in depends.tangent else "fprop",
        op=op_name(node),
        module=module_name(node),
        source=source_line(node),
        lhs=None,
        rhs=None,
        seq=node.meta.get("seq_nr"),
    )


def _left_alone(node: fx.Node, depends: Dependencies, reason: str) -> Site:
    """Its size is known where it is a matrix product in all but its operands."""
    site = _bare_site(node, depends)
    site.reason = reason
    packet, result = getattr(node.target, "overloadpacket", None), node.meta.get("val")
    if schema_name(node) in _SIZED or packet in _PACKETS or node.target in GROUPED:
        left = node.args[1 if packet in (aten.addmm, aten.baddbmm) else 0]
        assert isinstance(left, fx.Node)
        assert isinstance(result, torch.Tensor)
        (site.m, site.k), site.n = shape_of(left)[-2:], result.shape[-1]
        if result.dim() == len(shape_of(left)) == 3:
            site.batch = result.shape[0]
    return site


def _is_grouped(node: fx.Node) -> bool:
    """Whether it is one of the two forms of `metis.grouped_mm`."""
    if node.target not in GROUPED or any(node.args[3:]) or any(v for k, v in node.kwargs.items() if k != "offs"):
        return False
    left, right = (len(shape_of(node.args[i])) for i in OPERANDS[node.target])  # type: ignore[arg-type]
    return left == 2 and right in (2, 3)


def _partner(site: Site, fprops: dict[int, list[Site]]) -> Site | None:
    """The fprop whose backward this product is, or None: the same autograd number and a shared operand."""
    candidates = fprops.get(site.seq, []) if site.seq is not None else []
    others = {root(o.base) for o in site.operands if o.role != "gradient"}
    if not any(o.role == "gradient" for o in site.operands):
        return None
    for fprop in candidates:
        if others & {root(o.base) for o in fprop.operands}:
            return fprop
    return None


def _take_from_forward(site: Site, fprop: Site) -> None:
    site.op, site.module, site.source = fprop.op, fprop.module, fprop.source
    for operand in site.operands:
        if operand.role != "gradient":
            forward = _in_forward(operand, site, fprop)
            operand.role = operand.role if forward is None else forward.role
    site.weights, site.of_weight = fprop.weights, fprop.has_weight


def _in_forward(operand: Operand, site: Site, fprop: Site) -> Operand | None:
    """Which operand of `fprop` an operand of its backward is.

    Of a tensor that was multiplied by itself, the right one where the gradient's columns are summed up: g R^T.
    """
    found = [o for o in fprop.operands if root(o.base) is root(operand.base)]
    gradients = [o for o in site.operands if o is not operand and o.role == "gradient"]
    if len(found) == 2 and gradients:
        (gradient,) = gradients
        return fprop.rhs if gradient.axis == gradient.base.meta["val"].dim() - 1 else fprop.lhs
    return found[0] if found else None


def _gemm(site: Site, fprop: Site | None, depends: Dependencies) -> Gemm:
    assert site.lhs is not None
    assert site.rhs is not None
    other = site.rhs if site.lhs.role == "gradient" else site.lhs
    if "gradient" not in (site.lhs.role, site.rhs.role):
        return "fprop"
    if fprop is not None and fprop.lhs is not None and fprop.rhs is not None:
        # the gradient of one operand is made with the other
        target = fprop.rhs if _in_forward(other, site, fprop) is fprop.lhs else fprop.lhs
        return "wgrad" if target.role == "weight" else "dgrad"
    return "dgrad" if other.role == "weight" or not _is_parameter_gradient(site.node, depends) else "wgrad"


def _is_parameter_gradient(node: fx.Node, depends: Dependencies) -> bool:
    """Whether rearrangements, casts and sums of `node` are all that lies before a parameter's gradient."""
    parameters = {found for n in depends.names for found in aot_input(n.meta.get("desc")) if found is not None}
    stack = [node]
    while stack:
        for user in stack.pop().users:
            if user.op == "output":
                descs = user.meta.get("desc") or []
                values = user.args[0]
                assert isinstance(values, (list, tuple))
                for value, desc in zip(values, descs, strict=False):
                    kind, _, source = aot_output(desc)
                    if value is not None and kind == "gradient" and source in parameters:
                        return True
            elif root(user, through_casts=True) is not user or user.target in (
                aten.sum.dim_IntList,
                aten.add.Tensor,
            ):
                stack.append(user)
    return False


def _unsupported(site: Site) -> str | None:
    """Why a product can't be quantized at all, or None."""
    dtypes = {o.node.meta["val"].dtype for o in site.operands}
    if not dtypes <= set(SUPPORTED_DTYPES):
        names = ", ".join(sorted(str(d).removeprefix("torch.") for d in dtypes))
        return f"dtype {names}: only float32, bfloat16 and float16 products are quantized"
    if all(o.role == "gradient" for o in site.operands):
        return "both operands depend on the output's gradient"
    for operand in site.operands:
        stored = _stored_low_bit(operand)
        if stored is not None:
            return f"already quantized: its {operand.role} is decoded from {str(stored).removeprefix('torch.')}"
    if any(same(size, 0) for size in (site.m, site.n, site.k)):
        return "empty"
    return None


def _stored_low_bit(operand: Operand) -> torch.dtype | None:
    """The 8-bit (or packed) dtype that an operand was just decoded from, if any."""
    low_bit = _FLOAT8 | _INT8 if operand.role == "weight" else _FLOAT8
    frontier = [operand.node]
    for _ in range(_QUANTIZED_SEARCH):
        above = []
        for node in frontier:
            value = node.meta.get("val")
            if isinstance(value, torch.Tensor) and value.dtype in low_bit:
                return value.dtype
            if node.op == "call_function" and (root(node) is not node or _is_elementwise(node)):
                above += node.all_input_nodes
        frontier = above
    return None


def _is_elementwise(node: fx.Node) -> bool:
    return isinstance(node.target, OpOverload) and torch.Tag.pointwise in node.target.tags
