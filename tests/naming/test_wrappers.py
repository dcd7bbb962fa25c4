"""Names, depth and what is rewritten are those of the plain model, whatever wraps it or cuts it into graphs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
import torch.distributed as dist
from graphs import eager_backend
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.nn.parallel import DistributedDataParallel
from wrapped import TOKENS, Block, Model, done, make, one_process, sites_of_run

import metis_compile
from metis_compile import Policy

BY_INDEX = Policy.from_toml(
    """
    extends = "nvfp4"
    [[rule]]
    module = "layers.0.up"
    recipe = "high"
    [[rule]]
    blocks = "last 1"
    recipe = "high"
    """,
    name="by-index.toml",
)


@functools.cache
def plain(policy: str | Policy) -> dict[Any, Any]:
    model = torch.compile(make(), backend=eager_backend(policy))
    return done(sites_of_run(lambda: model(TOKENS)))


def compiled(model: Any, policy: str | Policy) -> Callable[[Tensor], Tensor]:
    return torch.compile(model, backend=eager_backend(policy))


def accelerated(model: Model, policy: str | Policy) -> Callable[[Tensor], Tensor]:
    """What Accelerate and Trainer do for bf16: they replace `model.forward`."""
    wrapped = accelerate.Accelerator(mixed_precision="bf16", cpu=True).prepare_model(model)
    assert "forward" in vars(wrapped)
    return compiled(wrapped, policy)


def with_replaced_forward(model: Model, policy: str | Policy) -> Callable[[Tensor], Tensor]:
    model.forward = accelerate.utils.convert_outputs_to_fp32(model.forward)
    return compiled(model, policy)


def with_partial_forward(model: Model, policy: str | Policy) -> Callable[[Tensor], Tensor]:
    model.forward = functools.partial(model.forward)
    return compiled(model, policy)


def in_function(model: Model, policy: str | Policy) -> Callable[[Tensor], Tensor]:
    return compiled(lambda tokens: model(tokens), policy)


def checkpointed(model: Model, policy: str | Policy) -> Callable[[Tensor], Tensor]:
    for i, layer in enumerate(model.layers):
        model.layers[i] = checkpoint_wrapper(layer)
    return compiled(model, policy)


def with_compiled_parts(model: Model, policy: str | Policy) -> Callable[[Tensor], Tensor]:
    """torch.compile on each block, in its place: torchtitan, accelerate's regional compilation."""
    backend = eager_backend(policy)
    for i, layer in enumerate(model.layers):
        model.layers[i] = torch.compile(layer, backend=backend)
    model.output = torch.compile(model.output, backend=backend)
    return model


def with_compiled_forwards(model: Model, policy: str | Policy) -> Callable[[Tensor], Tensor]:
    backend = eager_backend(policy)
    for layer in model.layers:
        layer.compile(backend=backend)
    model.output = torch.compile(model.output, backend=backend)
    return model


def with_compiled_checkpoints(model: Model, policy: str | Policy) -> Callable[[Tensor], Tensor]:
    backend = eager_backend(policy)
    for i, layer in enumerate(model.layers):
        model.layers[i] = torch.compile(checkpoint_wrapper(layer), backend=backend)
    model.output = torch.compile(model.output, backend=backend)
    return model


def with_compiled_inside(model: Model, policy: str | Policy) -> Callable[[Tensor], Tensor]:
    return compiled(with_compiled_parts(model, policy), policy)


def by_hand(model: Model, policy: str | Policy) -> Callable[[Tensor], Tensor]:
    """Blocks that a function calls one by one: the model is named, since no module calls them."""
    with_compiled_parts(model, policy)
    metis_compile.name_modules(model)

    def run(tokens: Tensor) -> Tensor:
        x = model.embed(tokens)
        for layer in model.layers:
            x = layer(x)
        return model.output(x)

    return run


WHOLE = [accelerated, with_replaced_forward, with_partial_forward, in_function, checkpointed, with_compiled_inside]
IN_PARTS = [with_compiled_parts, with_compiled_forwards, with_compiled_checkpoints, by_hand]


@pytest.mark.parametrize("policy", ["nvidia", BY_INDEX], ids=["nvidia", "by-index"])
@pytest.mark.parametrize("wrap", WHOLE)
def test_wrapped_and_compiled_whole(wrap: Callable[..., Any], policy: str | Policy) -> None:
    run = wrap(make(), policy)
    assert done(sites_of_run(lambda: run(TOKENS))) == plain(policy)


@pytest.mark.parametrize("policy", ["nvidia", BY_INDEX], ids=["nvidia", "by-index"])
@pytest.mark.parametrize("wrap", IN_PARTS)
def test_compiled_in_parts(wrap: Callable[..., Any], policy: str | Policy) -> None:
    """A graph for all blocks that rules treat alike, under the name of the first of them."""
    model = make()
    run = wrap(model, policy)
    sites = sites_of_run(lambda: run(TOKENS))
    expected = plain(policy)
    assert {key: done(sites)[key] for key in done(sites)} == {key: expected[key] for key in done(sites)}
    different = {"nvidia": 2, "by-index.toml": 3}[getattr(policy, "name", policy)]
    assert len({s.block for s in sites if s.block is not None}) == different
    assert [s.reason is None for s in sites if s.module == "output"] == [False, False, False]


def test_a_graph_serves_all_blocks_where_no_rule_tells_them_apart() -> None:
    run = with_compiled_parts(make(), "nvfp4")
    sites = sites_of_run(lambda: run(TOKENS))
    assert {s.module for s in sites} == {"layers.0.up", "layers.0.down", "output"}


def test_each_block_runs_the_graph_of_its_rules() -> None:
    """With layers.1 alone in FP8: its output is that of a model whose every block is, the others' are not."""
    rule = '[[rule]]\nmodule = "layers.{}.*"\nrecipe = "fp8"\n'
    x = torch.randn(2, 8, 32)
    outputs = {}
    for index in ("1", "{0..2}", "none"):
        policy = Policy.from_toml('extends = "high"\n' + rule.format(index), name=f"{index}.toml")
        model, backend = make(), eager_backend(policy)
        for layer in model.layers:
            layer.compile(backend=backend)
        torch.compiler.reset()
        with metis_compile.capture():
            model(TOKENS)
            outputs[index] = [layer(x).detach() for layer in model.layers]
    for i, output in enumerate(outputs["1"]):
        same, other = ("{0..2}", "none") if i == 1 else ("none", "{0..2}")
        torch.testing.assert_close(output, outputs[same][i], rtol=0, atol=0)
        assert not torch.equal(output, outputs[other][i])


def test_a_second_model_of_the_class_is_treated_like_the_first() -> None:
    backend, models = eager_backend(BY_INDEX), [make(), make()]
    for model in models:
        for layer in model.layers:
            layer.compile(backend=backend)
    sites = sites_of_run(lambda: [model(TOKENS) for model in models])
    assert sum(s.gemm == "fprop" for s in sites) == 2 * 3, "the second runs the graphs of the first"
    first, second = (model(TOKENS) for model in models)
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_ddp_cuts_a_graph_for_each_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "_DEFAULT_FIRST_BUCKET_BYTES", 9_000)
    with one_process(tmp_path):
        model = DistributedDataParallel(make(), bucket_cap_mb=0.02)
        run = compiled(model, "nvidia")
        torch.compiler.reset()
        with metis_compile.capture() as captured:
            run(TOKENS).sum().backward()
    assert len(captured.graphs) == 3
    assert done([s for graph in captured.graphs for s in graph.sites]) == {
        **plain("nvidia"),
        **{(s.module, s.gemm): done([s])[s.module, s.gemm] for g in captured.graphs for s in g.sites if s.kind},
    }


def test_fsdp1_puts_plain_tensors_in_the_places_of_parameters(tmp_path: Path) -> None:
    with one_process(tmp_path):
        wrap = ModuleWrapPolicy({Block})
        model = FullyShardedDataParallel(
            make(), auto_wrap_policy=wrap, use_orig_params=True, device_id=torch.device("cpu")
        )
        run = compiled(model, "nvidia")
        sites = sites_of_run(lambda: run(TOKENS))
    expected = plain("nvidia")
    assert {key: value for key, value in done(sites).items() if key[0] != "output"} == {
        key: expected[key] for key in done(sites) if key[0] != "output"
    }
    assert {s.block for s in sites if s.block is not None} == {(0, 3), (2, 3)}
    assert sum(s.reason is None for s in sites) == 6


def test_the_root_is_what_is_called_even_inside_of_another_module() -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.compile(make(), backend=eager_backend("nvidia"))

        def forward(self, tokens: Tensor) -> Tensor:
            return self.net(tokens)

    around = Around()
    modules = {s.module for s in sites_of_run(lambda: around(TOKENS))}
    assert {"net.layers.0.up", "net.output"} <= modules
    metis_compile.name_modules(around.net)
    assert {"layers.0.up", "output"} <= {s.module for s in sites_of_run(lambda: around(TOKENS))}


def test_name_modules_takes_a_module() -> None:
    with pytest.raises(TypeError, match="name_modules takes the model whose parts are compiled, got str"):
        metis_compile.name_modules("model")  # type: ignore[arg-type]
