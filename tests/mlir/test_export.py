"""What `export_mlir` returns: the functions by name, the arguments and results, the dialects; and what it refuses."""

from __future__ import annotations

import builtins
import importlib.metadata
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from graphs import eager_backend
from long_tail import sampled
from tiny import MLP, STOCHASTIC_POLICY
from torch import Tensor, nn

import metis_compile
from metis_compile import ExportError

pytest.importorskip("torch_mlir", reason="the export is made by torch-mlir, whose packages are for Linux")


def export(model: Any, *args: Any, **kwargs: Any) -> metis_compile.Exported:
    torch.compiler.reset()
    return metis_compile.export_mlir(model, *args, **kwargs)


@pytest.fixture(scope="module")
def exported() -> metis_compile.Exported:
    torch.manual_seed(0)
    return export(MLP(), torch.randn(24, 32), policy="nvfp4")


def test_each_quantization_and_its_inverse_is_a_private_function_that_is_called(
    exported: metis_compile.Exported,
) -> None:
    forward, backward = exported.programs
    assert "metis_quantize_nvfp4_1x16_nearest_axis1_24x32" in forward.functions
    assert "metis_dequantize_nvfp4_1x16_axis1_24x32" in forward.functions
    assert "metis_quantize_nvfp4_1x16_stochastic_round_up_axis0_24x32" in backward.functions
    for program in exported.programs:
        defined = re.findall(r"^  func\.func private @(\w+)\(", program.mlir, re.MULTILINE)
        assert tuple(defined) == program.functions
        called = re.findall(r"\bcall @(\w+)\(", program.mlir)
        assert set(called) == set(defined)
    # in forward: two activations, each along both axes, and two weights; what forward reads of them is decoded
    assert len(re.findall(r"\bcall @metis_quantize", forward.mlir)) == 6
    assert len(re.findall(r"\bcall @metis_dequantize", forward.mlir)) == 4
    signature = (
        "func.func private @metis_dequantize_nvfp4_1x16_axis1_24x32(%arg0: tensor<24x16xi8>, "
        "%arg1: tensor<24x2xf8E4M3FN>, %arg2: tensor<f32>) -> tensor<24x32xf32>"
    )
    assert signature in forward.mlir


def test_arguments_and_results_say_what_they_are(exported: metis_compile.Exported) -> None:
    forward, backward = exported.programs
    assert [str(port) for port in forward.inputs] == [
        "parameter up.weight: [48, 32] float32",
        "parameter up.bias: [48] float32",
        "input x: [24, 32] float32",
        "parameter down.weight: [32, 48] float32",
    ]
    assert str(forward.outputs[0]) == "output 0: [24, 32] float32"
    assert "saved down_activation_codes_wgrad: [12, 48] uint8" in map(str, forward.outputs)
    saved = [port for port in forward.outputs if port.kind == "saved"]
    assert saved == [port for port in backward.inputs if port.kind == "saved"]
    rest = [str(port) for port in backward.inputs if port.kind != "saved"]
    assert rest == ["parameter down.weight: [32, 48] float32", "seed seed: [1] int64", "tangent 0: [24, 32] float32"]
    assert [str(port) for port in backward.outputs] == [
        "gradient up.weight: [48, 32] float32",
        "gradient up.bias: [48] float32",
        "gradient down.weight: [32, 48] float32",
    ]


def test_saved_to_a_folder(exported: metis_compile.Exported, tmp_path: Path) -> None:
    files = exported.save(tmp_path / "new" / "folder")
    assert [path.name for path in files] == ["forward.mlir", "backward.mlir", "signature.json"]
    assert files[0].read_text() == exported.forward
    assert files[1].read_text() == exported.backward
    assert json.loads(files[2].read_text()) == exported.to_dict()
    with torch.no_grad():
        inference = export(MLP(), torch.randn(24, 32), policy="nvfp4")
    assert inference.backward is None
    assert [path.name for path in inference.save(tmp_path / "new" / "folder")] == ["forward.mlir", "signature.json"]
    assert not files[1].exists()


@pytest.mark.parametrize(
    ("dialect", "policy"),
    sampled(
        itertools.product(["linalg", "torch", "stablehlo"], ["nvfp4", "metis"]),
        [("linalg", "metis"), ("torch", "nvfp4"), ("stablehlo", "metis")],
    ),
)
def test_dialects(dialect: str, policy: str) -> None:
    torch.manual_seed(0)
    exported = export(MLP(), torch.randn(24, 32), policy=policy, dialect=dialect)
    product = {"linalg": "linalg.matmul", "torch": "torch.aten.mm", "stablehlo": "stablehlo.dot_general"}
    assert exported.backward is not None
    for text in (exported.forward, exported.backward):
        assert product[dialect] in text
        assert text.count("func.func private @metis_dequantize_nvfp4") >= 4
        assert ("torch." in text) == (dialect == "torch")
    assert ("@metis_orthonormalize_32x1" in exported.forward) == (policy == "metis")


class Running(nn.Module):
    """Changes its buffers, holds a constant, and returns more than one tensor, and one without a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.second = nn.Linear(32, 32), nn.Linear(32, 32)
        self.norm = nn.BatchNorm1d(32)

    def forward(self, x: Tensor, *, mask: Tensor) -> dict[str, Tensor]:
        y = self.second(self.norm(self.linear(x))) * torch.tensor([1.0, 2.0] * 16)
        return {"y": y * mask, "z": (y * 2).detach()}


def train(model: Any, policy: Any, seed: int, *args: Any, **kwargs: Any) -> list[Tensor]:
    """One step of the compiled model: what it returns, and the gradients of its parameters."""
    torch.compiler.reset()
    torch.manual_seed(seed)
    result = torch.compile(model, backend=eager_backend(policy, fallback_random=True))(*args, **kwargs)
    outputs = list(result.values()) if isinstance(result, dict) else [result]
    outputs[0].backward(torch.ones_like(outputs[0]))
    return [*(y.detach() for y in outputs), *(p.grad for p in model.parameters())]


@pytest.mark.parametrize(
    "policy",
    sampled(["nvfp4", "averis", "metis", "quartet2", "fp8", "ue5m3"], ["averis", "metis", "quartet2", "ue5m3"]),
)
def test_the_functional_graphs_do_what_the_compiled_model_does(policy: str) -> None:
    torch.manual_seed(0)
    x, mask = torch.randn(24, 32), torch.rand(24, 32)
    exported = export(Running(), x, mask=mask, policy=policy)
    torch.manual_seed(0)
    model = Running()
    before = {name: t.detach().clone() for name, t in (*model.named_parameters(), *model.named_buffers())}
    from metis_compile.state import first_values

    torch.manual_seed(3)
    values: dict[tuple[str, str], Tensor] = {
        ("input", "x"): x,
        ("input", "mask"): mask,
        ("tangent", "0"): torch.ones(24, 32),
        ("seed", "seed"): torch.randint(0, 2**63 - 1, [1]),
    }
    kept = {p.name: p.shape for program in exported.programs for p in program.inputs if p.kind == "state"}
    values |= {("state", name): first_values(shape, x.device) for name, shape in kept.items()}
    values |= {(kind, name): t for name, t in before.items() for kind in ("parameter", "buffer")}
    found: dict[tuple[str, str], Tensor] = {}
    for program in exported.programs:
        given = [values[port.kind, port.name].clone() for port in program.inputs]
        results = program.graph(*given)
        for port, value in zip(program.inputs, given, strict=True):
            assert torch.equal(value, values[port.kind, port.name]), f"{port} was changed in place"
        for port, value in zip(program.outputs, results, strict=True):
            found[port.kind, port.name] = value
            if port.kind == "saved":
                values[port.kind, port.name] = value
    y, z, *gradients = train(model, policy, 3, x, mask=mask)
    assert torch.equal(found["output", "0"], y)
    assert torch.equal(found["output", "1"], z)
    for (name, _), gradient in zip(model.named_parameters(), gradients, strict=True):
        assert torch.equal(found["gradient", name], gradient), name
    for name, buffer in model.named_buffers():
        assert torch.equal(found["buffer", name], buffer), name
        assert not torch.equal(buffer, before[name])
    parts = {
        f"{site}: {part}": t for site, parts in metis_compile.state_dict(model).items() for part, t in parts.items()
    }
    assert kept.keys() == {name for name in parts if not name.endswith("parameter")}
    for name in kept:
        assert torch.equal(found["state", name], parts[name]), name


def test_stochastic_rounding_takes_its_seed_from_an_argument() -> None:
    torch.manual_seed(0)
    exported = export(nn.Linear(32, 32), torch.randn(32, 32), policy=STOCHASTIC_POLICY)
    program = exported.programs[1]
    given = [
        torch.randn(port.shape).clamp(min=0 if port.kind == "saved" else -3).to(port.dtype) for port in program.inputs
    ]
    place = [port.kind for port in program.inputs].index("seed")
    gradients = []
    for seed in (1, 1, 2):
        given[place] = torch.tensor([seed])
        gradients.append(program.graph(*given)[0])
    assert torch.equal(gradients[0], gradients[1])
    assert not torch.equal(gradients[0], gradients[2])


class Opaque(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.eigvalsh(self.linear(x))


class Broken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        torch._dynamo.graph_break()
        return y * 2


class Empty(nn.Module):
    def forward(self, x: Tensor) -> int:
        return 3


REFUSED = {
    "random": (
        lambda: MLP(dropout=0.5),
        {},
        r"draws random numbers, .* in the native_dropout in <model> \(tiny.py:\d+\), forward",
    ),
    "unknown": (
        Opaque,
        {},
        r"can't lower aten\._linalg_eigh\.default to linalg, in the \w+ in <model> \(test_export.py:\d+\), forward",
    ),
    "split": (Broken, {}, r"^the model is not one graph, and only one can be exported: "),
    "empty": (Empty, {}, r"^one graph can be exported, and the model has 0: "),
    "dialect": (MLP, {"dialect": "linag"}, r"^dialect must be one of .*, got 'linag'; did you mean 'linalg'\?$"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_exported_is_named_in_one_line(case: str) -> None:
    model, options, message = REFUSED[case]
    with pytest.raises(ExportError, match=message) as error:
        export(model(), torch.randn(32, 32), **{"policy": "nvfp4", **options})
    assert len(str(error.value).splitlines()) == 1


def test_what_belongs_to_a_product_is_named_with_it() -> None:
    """A fresh basis is made from eigenvectors, which no dialect has."""
    with (
        pytest.raises(ExportError, match=r"aten\._linalg_eigh\.default .* in the fprop of linear in up \(tiny"),
        torch.no_grad(),
    ):
        export(MLP(), torch.randn(24, 32), policy="metis")


def test_symbolic_sizes_are_not_asked_for() -> None:
    """Two exports at two sizes: Dynamo would make the second symbolic."""
    model = MLP()
    for tokens in (24, 40):
        exported = metis_compile.export_mlir(model, torch.randn(tokens, 32), policy="nvfp4")
        assert exported.programs[0].outputs[0].shape == (tokens, 32)


def test_torch_mlir_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(ExportError, match=r"^torch-mlir is not installed; .*pip install 'metis-compile\[mlir\]'$"):
        export(MLP(), torch.randn(24, 32))


def test_torch_mlir_that_does_not_fit_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def fail(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "torch_mlir.extras.fx_importer":
            raise AttributeError("module 'torch' has no attribute 'float8_e9m9'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", fail)
    with pytest.raises(
        ExportError,
        match=r"^torch-mlir \d+ does not fit torch \S+ \(AttributeError: .*\); what is tested is",
    ):
        export(MLP(), torch.randn(24, 32))


def test_torch_mlir_that_imports_and_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """No op of the model is blamed for what no op could do."""
    from torch_mlir.extras.fx_importer import FxImporter

    def fail(self: Any, graph: Any, **_: Any) -> None:
        raise TypeError("GraphNodeImporter() takes 3 arguments\nbut 4 were given")

    monkeypatch.setattr(FxImporter, "import_stateless_graph", fail)
    with pytest.raises(
        ExportError,
        match=r"^torch-mlir \d+ does not fit torch \S+ \(it can't lower aten\.neg\.default to linalg: GraphNodeImporter"
        r".* but 4 were given\); what is tested is torch-mlir 20261001 with torch 2\.13\.0: pip install",
    ):
        export(MLP(), torch.randn(24, 32), policy="nvfp4")


def test_the_pair_that_is_named_is_the_one_that_is_pinned() -> None:
    from metis_compile.mlir.lowering import TESTED

    root = Path(__file__).parents[2]
    pinned = dict(line.split("==") for line in (root / "constraints.txt").read_text().splitlines() if "==" in line)
    assert (pinned["torch"], pinned["torch-mlir"]) == TESTED
    text = " ".join((root / "docs" / "export.md").read_text().split())
    assert "torch {} with torch-mlir {} is the pair that is tested".format(*TESTED) in text


def test_the_model_is_left_as_it_was() -> None:
    torch.manual_seed(0)
    model = Running()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    state = torch.get_rng_state()
    export(model, torch.randn(24, 32, generator=torch.Generator().manual_seed(0)), mask=torch.ones(24, 32))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
