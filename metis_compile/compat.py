"""Every private torch API that metis uses, in one place. Supported: torch 2.11 and newer.

| symbol | since | why |
| --- | --- | --- |
| compile_fx | 2.0 | Inductor with its caches, dynamic shapes and partitioner, and our passes by config_patches |
| CustomGraphPass | 2.6 | a pass with a uuid keeps the FX graph and AOTAutograd caches usable |
| CustomPartitionerFn | 2.9 | sees the forward and backward graphs the moment they are cut apart |
| partition | 2.0 | the min-cut partitioner that Inductor uses, called from our recording partitioner |
| without_custom_passes | 2.0 | Inductor's joint passes without ours, for what the plain model saves for backward |
| inductor_config | 2.0 | the options that a user may give beside ours |
| list_mode_options | 2.0 | what `mode="max-autotune"` stands for |
| detect_fake_mode | 2.0 | the fake tensor mode of a captured graph |
| FakeTensor | 2.0 | which mode a tensor of Dynamo's graph is faked in |
| OpOverload | 1.12 | tells an operator of the dispatcher from a Python function in a graph |
| trace_structured | 2.3 | puts graphs where `TORCH_TRACE` and tlparse find them |
| register_lowering, TensorBox | 2.0 | how `metis::materialize` becomes a buffer |
| make_boxed_func | 2.0 | the calling convention of a compiled graph, for one that runs eagerly |
| ExternKernel, ExternKernelOut, FixedLayout, fallback_handler | 2.0 | CPU kernels write into buffers Inductor plans |
| FallbackKernel, convert_shape_to_inductor, empty_strided, squeeze | 2.0 | so do kernels with several outputs |
| fx_graph_cse | 2.0 | traced numerics compute each thing once |
| CppCodeCache | 2.0 | Inductor's C++ compiler, its flags and its disk cache, for the CPU kernels |
| select_decomp_table | 2.0 | Inductor's decompositions, for traced numerics |
| enable_python_dispatcher | 2.0 | traces symbolic sizes through composite operators |
| TritonTemplate, SymbolicGridFn | 2.0, 2.8 | the templates of packed products |
| ExternKernelChoice, ExternKernelCaller | 2.0 | plain torch as one of the autotuner's choices |
| add_feedback_saver | 2.8 | the autotuner's timings, to say when no template works |
| SyntheticLocalSource | 2.3 | says where an input comes from that the model does not have: the state |
| cache_dir | 2.6 | what was seen of a graph is kept beside its compiled code |
| DynamoUnsupported | 2.0 | what Dynamo raises where a model is not one graph, for the reason |
| aot_input, aot_position, aot_output | 2.8 | what AOTAutograd says an input or output of a graph is: `meta["desc"]` |
| compile_phase, compile_phases | 2.2 | our share of compile time, among Dynamo's and Inductor's own phases |
| inductor_sources | 2.0 | the code that Inductor writes, to count its kernels |
| scaled_mm | 2.5 | cuBLAS' product of FP8 operands, which ours are measured beside |
| dynamo_scope | 2.0 | the locals and globals of the frame that Dynamo compiles, to tell whose module a source names |
| source_chain | 2.0 | the objects that Dynamo went through to reach a graph input |
| in_backward | 2.0 | a forward that runs inside a backward is a checkpointed one, run again |
| VALUE_OF_FAKE_ERRORS | 2.0 | what is raised where a model reads the value of a fake tensor |
| new_fake_mode, fake_mode_of, has_values | 2.0 | stand-ins for a model on the meta device; what is fake |
| fake_tensor | 2.0 | what a call returns is known from an equal one, and need not be evaluated |
| detached_dynamo_state | 2.8 | a dry run neither reads nor changes what Dynamo has learned of changing sizes |
| without_default_device | 2.3 | stand-ins of meta tensors are on the CPU, and so is what is made beside them |
| compile_fx_inner, around_compiled | 2.0, 2.6 | a forward or backward graph the moment it is compiled; its calls |
| stable_topological_sort | 2.0 | Inductor's joint passes leave a graph in order only after the last of all |
| without_autograd_cache | 2.6 | a graph that is to be looked at must be made, and not come from AOTAutograd's cache |
| compiles_a_backward | 2.5 | compiled autograd hands over backwards whose products were treated with their forward |
| fsdp_layouts | 2.6 | how FSDP2's parameters lie while they compute, to tell tensor parallelism from storage |
| saves_through_hooks | 2.3 | a forward that checkpointing may run again is one whose saved tensors go through hooks |
"""

from __future__ import annotations

import ctypes
import platform
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._dynamo import compiled_autograd, pgo
from torch._dynamo import config as dynamo_config
from torch._dynamo.exc import Unsupported as DynamoUnsupported
from torch._dynamo.source import SyntheticLocalSource
from torch._dynamo.symbolic_convert import InstructionTranslator
from torch._dynamo.utils import compile_times, dynamo_timed
from torch._functorch import config as functorch_config
from torch._functorch.aot_autograd import make_boxed_func
from torch._functorch.compile_utils import fx_graph_cse
from torch._functorch.partitioners import min_cut_rematerialization_partition as partition
from torch._guards import detect_fake_mode
from torch._inductor import config as inductor_config
from torch._inductor import list_mode_options
from torch._inductor.codecache import CppCodeCache
from torch._inductor.compile_fx import compile_fx, compile_fx_inner
from torch._inductor.custom_graph_pass import CustomGraphPass, CustomPartitionerFn
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.fx_passes.joint_graph import joint_graph_passes
from torch._inductor.graph import GraphLowering
from torch._inductor.ir import (
    ExternKernel,
    ExternKernelOut,
    FallbackKernel,
    FixedLayout,
    TensorBox,
    convert_shape_to_inductor,
)
from torch._inductor.lowering import empty_strided, fallback_handler, register_lowering, squeeze
from torch._inductor.pattern_matcher import stable_topological_sort
from torch._inductor.runtime.runtime_utils import cache_dir
from torch._inductor.select_algorithm import (
    ExternKernelCaller,
    ExternKernelChoice,
    SymbolicGridFn,
    TritonTemplate,
    add_feedback_saver,
    autotune_select_algorithm,
)
from torch._inductor.virtualized import V
from torch._logging import trace_structured
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    in_kernel_invocation_manager,
)
from torch.overrides import _get_current_function_mode_stack, _pop_mode, _push_mode
from torch.utils import _device as torch_device
from torch.utils._device import DeviceContext

__all__ = [
    "VALUE_OF_FAKE_ERRORS",
    "CppCodeCache",
    "CustomGraphPass",
    "CustomPartitionerFn",
    "DynamoUnsupported",
    "ExternKernel",
    "ExternKernelCaller",
    "ExternKernelChoice",
    "ExternKernelOut",
    "FakeTensor",
    "FallbackKernel",
    "FixedLayout",
    "Layout",
    "OpOverload",
    "SymbolicGridFn",
    "TensorBox",
    "TritonTemplate",
    "add_feedback_saver",
    "aot_input",
    "aot_output",
    "aot_position",
    "around_compiled",
    "autotune",
    "bf16_gemm",
    "cache_dir",
    "compile_fx",
    "compile_fx_inner",
    "compile_phase",
    "compile_phases",
    "compiles_a_backward",
    "copy_dynamo_graph",
    "detached_dynamo_state",
    "detect_fake_mode",
    "dtensor_layout",
    "dynamo_scope",
    "dynamo_source",
    "empty_buffer",
    "enable_python_dispatcher",
    "exact_division",
    "fake_mode_of",
    "fake_tensor",
    "fallback_handler",
    "fsdp_layouts",
    "fx_graph_cse",
    "graph_being_lowered",
    "has_values",
    "in_backward",
    "inductor_config",
    "inductor_sources",
    "is_buffer_input",
    "is_parameter_input",
    "list_mode_options",
    "lowered_size_hint",
    "lowers_to_triton",
    "make_boxed_func",
    "new_fake_mode",
    "partition",
    "register_lowering",
    "saves_through_hooks",
    "scaled_mm",
    "select_decomp_table",
    "size_hint",
    "source_chain",
    "stable_topological_sort",
    "synthetic_source",
    "trace_structured",
    "without_autograd_cache",
    "without_custom_passes",
    "without_default_device",
]


def without_custom_passes(gm: fx.GraphModule) -> fx.GraphModule:
    """A joint graph after Inductor's own joint passes, without those that the configuration adds."""
    with inductor_config.patch(joint_custom_pre_pass=None, joint_custom_post_pass=None):
        return joint_graph_passes(gm) if inductor_config.use_joint_graph_passes else gm  # type: ignore[no-any-return]


VALUE_OF_FAKE_ERRORS = (DataDependentOutputException, DynamicOutputShapeException)


def new_fake_mode() -> Any:
    """A mode whose fake tensors may meet real ones."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def fake_mode_of(tensors: Iterable[object]) -> Any:
    """The mode of the first fake tensor among `tensors`, or None."""
    return next((t.fake_mode for t in tensors if isinstance(t, FakeTensor)), None)


def fake_tensor(
    mode: Any, shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """A fake tensor of `mode` with memory of its own, made as the mode makes those that it has cached.

    torch._subclasses.fake_tensor.in_kernel_invocation_manager.
    """
    with in_kernel_invocation_manager(mode):
        meta = torch.empty_strided(tuple(shape), tuple(strides), dtype=dtype, device="meta")
    return FakeTensor(mode, meta, device)


def has_values(tensor: torch.Tensor) -> bool:
    """Whether a tensor is neither fake nor on the meta device."""
    return not (tensor.is_meta or isinstance(tensor, FakeTensor))


@contextmanager
def without_default_device() -> Iterator[None]:
    """Within, tensors are made on the CPU where nothing else is said, whatever `with torch.device(...)` is around.

    The modes of torch.overrides' stack, but for torch.utils._device.DeviceContext.
    """
    device, torch_device.CURRENT_DEVICE = torch_device.CURRENT_DEVICE, None
    modes = _replace_modes([m for m in _get_current_function_mode_stack() if not isinstance(m, DeviceContext)])
    try:
        yield
    finally:
        _replace_modes(modes)
        torch_device.CURRENT_DEVICE = device


def _replace_modes(modes: Sequence[Any]) -> list[Any]:
    """Puts `modes` in place of the function modes that are active, and returns these, outermost first."""
    before = list(_get_current_function_mode_stack())
    for _ in before:
        _pop_mode()
    for mode in modes:
        _push_mode(mode)
    return before


@contextmanager
def detached_dynamo_state() -> Iterator[None]:
    """Within, Dynamo compiles as in a new process: what it has learned of sizes that change has no part in it.

    Nor does it learn within, or reach the limits on how often a function is compiled again. torch._dynamo.pgo.
    """
    changes: dict[str, Any] = dict.fromkeys(("recompile_limit", "accumulated_recompile_limit"), 2**31)
    changes.update(dict.fromkeys(("automatic_dynamic_local_pgo", "automatic_dynamic_remote_pgo"), False))
    learned, pgo._CODE_STATE = pgo._CODE_STATE, defaultdict(pgo.CodeState)
    try:
        with dynamo_config.patch(changes):
            yield
    finally:
        pgo._CODE_STATE = learned


def dynamo_source(node: fx.Node) -> str:
    """Where Dynamo found a graph input, as Python text: `L['self']._modules['up']._parameters['weight']`.

    `_dynamo_source` on the placeholder; its `name` is a method up to 2.11 and a property after.
    """
    return _source_name(getattr(node, "_dynamo_source", None))


def _source_name(source: Any) -> str:
    name = getattr(source, "name", "")
    return name() if callable(name) else str(name)


def source_chain(node: fx.Node) -> list[str]:
    """What Dynamo went through to reach a graph input, outermost first: `L['self']`, ..., the input itself.

    Each is Python text over the names of `dynamo_scope`. Empty for an input that Dynamo did not make.
    """
    names, source = [], getattr(node, "_dynamo_source", None)
    while source is not None:
        names.append(_source_name(source))
        source = getattr(source, "base", None)
    return [name for name in reversed(names) if name]


def dynamo_scope() -> tuple[dict[str, Any], Any] | None:
    """The names that sources are written in, and the first argument of the frame that Dynamo compiles now.

    InstructionTranslator.current_tx. None outside of Dynamo.
    """
    try:
        transaction: Any = InstructionTranslator.current_tx()
    except AttributeError:  # this thread has traced nothing
        return None
    output = transaction.output
    code = output.root_tx.f_code
    first = output.local_scope.get(code.co_varnames[0]) if code.co_argcount else None
    return {"L": output.local_scope, "G": output.global_scope}, first


def synthetic_source(name: str) -> Any:
    """A source for an input that is not the model's."""
    return SyntheticLocalSource(name)


def copy_dynamo_graph(gm: fx.GraphModule) -> tuple[fx.GraphModule, list[fx.Node]]:
    """A copy of what Dynamo hands to a backend, sharing its tensors, and the copy's placeholders."""
    graph = fx.Graph()
    mapping: dict[fx.Node, Any] = {}
    graph.output(graph.graph_copy(gm.graph, mapping))
    placeholders = []
    for node in gm.graph.find_nodes(op="placeholder"):
        copied = mapping[node]
        if hasattr(node, "_dynamo_source"):
            copied._dynamo_source = node._dynamo_source
        placeholders.append(copied)
    result = fx.GraphModule(gm, graph)
    for name, value in vars(gm).items():
        if name not in vars(result):
            setattr(result, name, value)  # such as the sources of parameters
    result.meta = dict(gm.meta)
    return result, placeholders


def compile_phase(name: str) -> AbstractContextManager[Any]:
    """Within: time counts as this phase of compilation, for `compile_phases` and for torch's own traces of compilation.

    torch._dynamo.utils.dynamo_timed.
    """
    phase: AbstractContextManager[Any] = dynamo_timed(name)
    return phase


def compile_phases() -> dict[str, float]:
    """Seconds that this process spent in each phase of compilation; phases lie within others.

    torch._dynamo.utils.compile_times.
    """
    times: Any = compile_times(repr="csv", aggregate=True)
    names, seconds = times
    return dict(zip(names, map(float, seconds), strict=True))


@contextmanager
def inductor_sources() -> Iterator[list[str]]:
    """Within: gathers the Python code that Inductor writes, a text for each graph, those in its caches too.

    GraphLowering.save_output_code, which a graph from a cache is handed to as well.
    """
    found: list[str] = []
    kept = GraphLowering.__dict__["save_output_code"]
    GraphLowering.save_output_code = staticmethod(found.append)  # type: ignore[method-assign, assignment]
    try:
        yield found
    finally:
        GraphLowering.save_output_code = kept  # type: ignore[method-assign]


def in_backward() -> bool:
    """Whether autograd is running a backward in this thread."""
    return bool(torch._C._current_graph_task_id() != -1)


def compiles_a_backward() -> bool:
    """Whether compiled autograd is running a backward that it compiles.

    torch._dynamo.compiled_autograd.in_compiled_autograd_region.
    """
    return bool(compiled_autograd.in_compiled_autograd_region)


def saves_through_hooks() -> bool:
    """Whether what autograd saves in this thread goes through hooks, as a checkpointed forward's does."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


def around_compiled(compiled: Any, call: Callable[[Callable[..., Any], list[Any]], Any]) -> Any:
    """`compiled`, a graph's code, such that `call(run, inputs)` stands in for `run(inputs)` wherever it is called.

    What compile_fx_inner gives is changed in place, CompiledFxGraph.current_callable; inputs: a list, which `run` may
    empty.
    """
    run = getattr(compiled, "current_callable", None)
    if run is None:
        return make_boxed_func(lambda *inputs: call(compiled, list(inputs)))
    compiled.current_callable = partial(call, run)
    return compiled


def without_autograd_cache() -> AbstractContextManager[Any]:
    """Within: AOTAutograd makes its graphs anew. What Inductor made of them still comes from its own cache."""
    patched: AbstractContextManager[Any] = functorch_config.patch(enable_autograd_cache=False)
    return patched


Layout = tuple[Any, Sequence[Any]]  # the DeviceMesh and the placements of a DTensor


def dtensor_layout(value: object) -> Layout | None:
    """How a DTensor, or a fake one, lies; None for all else."""
    tensor = sys.modules.get("torch.distributed.tensor")
    if tensor is None or not isinstance(value, tensor.DTensor):
        return None
    return value.device_mesh, value.placements


def fsdp_layouts(model: torch.nn.Module) -> dict[int, Layout | None]:
    """Of each parameter that FSDP2 shards, by its id: how it lies once it is gathered; None for a plain tensor.

    FSDPParam._unsharded_dtensor_spec (2.13), _tp_spec before; FSDPState._fsdp_param_groups, _fsdp_param_group before.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")
    found: dict[int, Layout | None] = {}
    for module in [] if fsdp is None else model.modules():
        if not isinstance(module, fsdp.FSDPModule):  # type: ignore[union-attr]
            continue
        state: Any = module._get_fsdp_state()
        groups = getattr(state, "_fsdp_param_groups", None)
        groups = [state._fsdp_param_group] if groups is None else groups
        for parameter in [parameter for group in groups if group is not None for parameter in group.fsdp_params]:
            spec = getattr(parameter, "_unsharded_dtensor_spec", None) or getattr(parameter, "_tp_spec", None)
            layout = None if spec is None else (spec.mesh, spec.placements)
            for tensor in (parameter.sharded_param, getattr(parameter, "_unsharded_param", None)):
                found[id(tensor)] = layout
    return found


def scaled_mm(a: torch.Tensor, b: torch.Tensor, a_scale: torch.Tensor, b_scale: torch.Tensor, dtype: Any) -> Any:
    """cuBLAS' product of float8 a [m, k], row by row, and b [k, n], column by column, with its fast accumulation.

    torch._scaled_mm. a_scale, b_scale: float32 of no dimensions, or [m, 1] and [1, n].
    """
    return torch._scaled_mm(a, b, scale_a=a_scale, scale_b=b_scale, out_dtype=dtype, use_fast_accum=True)


def is_parameter_input(node: fx.Node) -> bool:
    """Whether a graph input is an `nn.Parameter`. Dynamo's fake tensors keep that, in `example_value`."""
    return isinstance(node.meta.get("example_value"), torch.nn.Parameter)


def is_buffer_input(node: fx.Node) -> bool:
    """Whether a graph input is a module's buffer, by its source."""
    return "_buffers[" in dynamo_source(node)


def size_hint(size: Any) -> int:
    """The value that a symbolic size had when the graph was captured; Inductor's guess for one that depends on data."""
    hint = size.node.hint if isinstance(size, torch.SymInt) else size
    return int(inductor_config.unbacked_symint_fallback if hint is None else hint)


@cache
def bf16_gemm() -> Any:
    """MKL's `cblas_gemm_bf16bf16f32`, which torch's x86 builds carry, as ctypes calls it; None where it is absent.

    torch has no CPU product of bfloat16 matrices into float32. None also on CPUs without the instructions (AMX,
    AVX512_BF16) that make it worth while, and where ATEN_CPU_CAPABILITY keeps torch from AVX-512.
    """
    if platform.machine() not in ("x86_64", "AMD64") or not (
        torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    ):
        return None
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return None
    libraries = sorted((Path(torch.__file__).parent / "lib").glob("*torch_cpu.*"))
    gemm = getattr(ctypes.CDLL(str(libraries[0])), "cblas_gemm_bf16bf16f32", None) if libraries else None
    if gemm is not None:
        size, pointer, real = ctypes.c_int, ctypes.c_void_p, ctypes.c_float
        gemm.argtypes = [size] * 6 + [real, pointer, size, pointer, size, real, pointer, size]
        gemm.restype = None
    return gemm


def exact_division() -> dict[str, Any]:
    """Inductor's option that has its Triton kernels divide as eager torch does; nothing where it has none.

    Without it they take an approximation, and scales differ from those of the numerics in their last bit.
    """
    option = "eager_numerics.division_rounding"
    return {option: True} if option in inductor_config.get_config_copy() else {}


def graph_being_lowered() -> Any:
    """The GraphLowering that Inductor is at work on."""
    return V.graph


def aot_input(desc: Any) -> tuple[int | None, tuple[int | None, int | None] | None, str | None]:
    """What AOTAutograd says an input of a graph is (`desc`), as (position, tangent of, parameter's name).

    One of the three is there: the position among the inputs of Dynamo's graph; for a tangent, what `aot_output` says
    of its output; the name where Dynamo left parameters as attributes. None of them for what forward saved, and for
    sizes of a tensor subclass. A tensor inside of a subclass (DTensor) is at its subclass's position.
    """
    kind = type(desc).__name__
    if kind in ("SubclassSizeAOTInput", "SubclassStrideAOTInput"):
        return None, None, None  # its idx is a dimension
    if kind == "SubclassGetAttrAOTInput":
        return aot_input(desc.base)
    if kind == "TangentAOTInput":
        return None, aot_output(desc.output)[1:], None
    if kind in ("ParamAOTInput", "BufferAOTInput"):
        return None, None, str(desc.target)
    return getattr(desc, "idx", None), None, None


def aot_position(desc: Any) -> int | None:
    """The position of a graph's input, or of what it is the base of, among the inputs of Dynamo's graph."""
    kind = type(desc).__name__
    if kind in ("ViewBaseAOTInput", "SyntheticBaseAOTInput"):
        return aot_position(desc.base_of)
    return aot_input(desc)[0]


def aot_output(desc: Any) -> tuple[str, int | None, Any]:
    """What AOTAutograd says an output of a graph is: ("saved" | "gradient" | "output", number, input).

    number: of the model's output. input: for the gradient or the new value of an input, its position among the inputs
    of Dynamo's graph, or its name where Dynamo left parameters as attributes.
    """
    kind = type(desc).__name__
    if kind.startswith("SavedForBackwards"):
        return "saved", None, None
    if kind == "SubclassGetAttrAOTOutput":
        return aot_output(desc.base)
    if kind == "GradAOTOutput":
        position, _, name = aot_input(desc.grad_of)
        return "gradient", None, position if name is None else name
    if kind == "InputMutationAOTOutput":
        return "output", None, aot_input(desc.mutated_input)[0]
    return "output", getattr(desc, "idx", None), None


def empty_buffer(value: torch.Tensor) -> TensorBox:
    """In a lowering: a contiguous buffer of Inductor's like the fake tensor `value`, that nothing has written to."""
    size = convert_shape_to_inductor(value.shape)
    like: dict[str, Any] = {"dtype": value.dtype, "device": value.device}
    if size:
        return empty_strided(size, None, **like)
    return squeeze(empty_strided([1], None, **like), 0)  # of no dimensions it would be a number, written by a kernel


def lowers_to_triton(device: torch.device) -> bool:
    """Whether Inductor makes Triton kernels for a device."""
    return device.type == "cuda" or (device.type == "cpu" and inductor_config.cpu_backend == "triton")


def lowered_size_hint(size: Any) -> int:
    """Inductor's idea of a size of its IR while it lowers: `size_hint` up to 2.12, `optimization_hint` from 2.13 on."""
    sizevars = V.graph.sizevars
    hint = getattr(sizevars, "optimization_hint", None) or sizevars.size_hint  # type: ignore[attr-defined]
    return int(hint(size))


def autotune(
    name: str,
    choices: Sequence[Any],
    nodes: Sequence[Any],
    layout: Any,
    inputs: dict[int, Any] | None = None,
) -> Any:
    """Times the choices and returns the best one's output.

    inputs: what makes the tensors of some of the nodes, by their places, to time with; others get random numbers.

    `autotune_select_algorithm` returns that up to 2.12, and with it the choice from 2.13 on.
    """
    more: dict[str, Any] = {} if inputs is None else {"input_gen_fns": inputs}
    result = autotune_select_algorithm(name, list(choices), list(nodes), layout, **more)
    return result[0] if isinstance(result, tuple) else result
