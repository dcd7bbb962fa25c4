"""The adapter, on stand-ins that have nothing of the published code but the names that it is imported by."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import against
import published
import pytest
import torch
from published import FORMS, check_checkout, published_layers
from torch import nn

from metis_compile.bench.errors import BenchError
from metis_compile.train.trainer import build

LAYER = """
import torch
import transformer_engine.pytorch as te

class BitLinear(torch.nn.Module):
    def __init__(self, in_features, out_features, args=None, bias=True):
        super().__init__()
        self.linear = torch.nn.Linear(in_features, out_features, bias=bias, device=args.device)
        self.args = args
        if args.enable_forward_svd:
            self.linear.weight.cuda(self.linear.weight.get_device())

    def forward(self, x):
        assert x.dim() == 3
        return self.linear(x)
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Path]]:
    """Writes a checkout whose layer is the text given."""
    before = set(sys.modules)
    find_spec = published.importlib.util.find_spec
    monkeypatch.setattr(published.importlib.util, "find_spec", lambda name: name == "scipy" or find_spec(name))

    def write(layer: str = LAYER) -> Path:
        for name, text in {"__init__": "from .bitlinear import *", "bitlinear": layer, "quant": ""}.items():
            path = tmp_path / "Metis" / f"{name}.py"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        return tmp_path

    yield write
    for name in set(sys.modules) - before:
        if name.split(".")[0] == "Metis":
            del sys.modules[name]


def test_every_linear_of_the_blocks_and_no_other_is_theirs(checkout: Any, settings: Any) -> None:
    model = published_layers(checkout(), "script", compiled=False)(build(settings()), 0)
    theirs = {name: m for name, m in model.named_modules() if type(m).__name__ == "BitLinear"}
    assert set(theirs) == {f"blocks.0.{n}" for n in ("attn.q", "attn.k", "attn.v", "attn.out", "mlp.up", "mlp.down")}
    assert type(model.lm_head) is nn.Linear
    up = theirs["blocks.0.mlp.up"].linear
    assert (up.in_features, up.out_features, up.bias is not None) == (16, 64, True)
    model(torch.zeros(2, 16, dtype=torch.int64)).sum().backward()


def test_the_forms_split_what_they_say(checkout: Any, settings: Any) -> None:
    found = {}
    for form in FORMS:
        model = published_layers(checkout(), form, compiled=False)(build(settings(width=256)), 0)
        args = model.blocks[0].attn.q.args
        found[form] = (args.enable_forward_svd, args.enable_forward_svd_intime, args.enable_activation_svd)
        assert args.enable_backward_svd
        assert {v for k, v in vars(args).items() if k.startswith("q_")} == {"nvfp4e2m1b"}
        assert args.backward_lowrank_svd == (16 if form == "script" else 4)
    assert found == {"script": (True, False, False), "paper": (False, True, True)}


def test_what_stands_in_is_gone_afterwards(checkout: Any, settings: Any) -> None:
    kept = torch.Tensor.cuda
    path = checkout()
    published_layers(path, "script", compiled=False)(build(settings()), 0)
    assert torch.Tensor.cuda is kept
    assert "transformer_engine" not in sys.modules
    assert str(path) not in sys.path


def test_their_layers_stay_eager_in_a_compiled_model(checkout: Any, settings: Any) -> None:
    graphs: list[Any] = []

    def backend(gm: Any, inputs: Any) -> Any:
        graphs.append(gm)
        return gm.forward

    model = published_layers(checkout(), "script", compiled=True)(build(settings()), 0)
    torch.compile(model, backend=backend)(torch.zeros(2, 16, dtype=torch.int64))
    names = [getattr(node.target, "__name__", "") for gm in graphs for node in gm.graph.nodes]
    assert {"layer_norm", "gelu"} <= set(names)
    assert "linear" not in names


def test_a_folder_that_is_no_checkout(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"is not a checkout of the Metis authors' .* it has no Metis/__init__.py"):
        check_checkout(tmp_path)


def test_without_scipy(checkout: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = checkout()
    monkeypatch.setattr(published.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BenchError, match="imports scipy, which is not installed: pip install scipy"):
        check_checkout(path)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("x = 1", "has no Metis.BitLinear"),
        ("import nowhere_to_be_found", "cannot import .*nowhere_to_be_found"),
        (LAYER.replace("args.enable_forward_svd", "args.enable_magic"), "another version .*enable_magic"),
    ],
)
def test_another_version_of_it(checkout: Any, settings: Any, layer: str, message: str) -> None:
    path = checkout(layer)
    with pytest.raises(BenchError, match=message):
        published_layers(path, "script", compiled=False)(build(settings()), 0)


def test_each_form_and_mode_is_a_row(answering: Any, checkout: Any, settings: Any, options: Any, console: Any) -> None:
    def run(job: Any) -> dict[str, Any]:
        theirs = {"gradients": [8.0, 8.0]}
        return {"eager": theirs, "compiled": {"gradients": [6.0, 6.0]}, "candidate": {"gradients": [2.0, 2.0]}}

    jobs = answering(run)
    path = checkout()
    subprocess.run(["git", "-C", path, "init", "-q"], check=True)
    subprocess.run(["git", "-C", path, "add", "."], check=True)
    names = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", "-C", path, *names, "commit", "-q", "-m", "one"], check=True)
    report = against.bench_against(path, ["metis"], settings(), options, console)
    assert report.numbers["published"]["dirty"] is False
    assert len(report.numbers["published"]["commit"]) == 40
    assert [job.request["form"] for job in jobs] == list(FORMS)
    assert [row[0] for row in report.cells] == ["script, eager", "script, compiled", "paper, eager", "paper, compiled"]
    assert [row["ratio"]["median"] for row in report.numbers["rows"]] == [4, 3, 4, 3]


def test_the_worker_times_all_three(checkout: Any, settings: Any, uncompiled: None) -> None:
    path = str(checkout())
    result = against.measure("metis", settings(), lambda done: None, rounds=2, path=path, form="script")
    assert {side: len(times["gradients"]) for side, times in result.items()} == {
        "eager": 2,
        "compiled": 2,
        "candidate": 2,
    }
