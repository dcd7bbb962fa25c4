"""Imports run one way: a folder may import what stands before it in LAYERS; lazy imports count too."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From the ground up. `metis_compile` itself, which only hands names on, is above them all but for its version.
LAYERS = (
    "spelling",
    "compat",
    "numerics",
    "conditioning",
    "ranks",
    "ops",
    "cost_model",
    "policy",
    "defaults",
    "options",
    "kernels",
    "passes",
    "naming",
    "schedule",
    "state",
    "reporting",
    "statistics",
    "monitoring",
    "backend",
    "inspection",
    "sensitivity",
    "calibration",
    "weights",
    "mlir",
    "measure",
    "html_report",
    "train",
    "compare",
    "bench",
    "cli",
    "integrations",
)
# Inside `passes`: what is asked of a graph, the driver, and the passes themselves.
PASSES = ("graph", "verify", "context", "lowering", "joint", "record", "pipeline")
OF_THE_ROOT = {"__version__", "__file__"}  # what every layer may ask of `metis_compile` itself


def sources(root: Path) -> Iterator[tuple[str, str]]:
    """(dotted module, source) of every file of the package."""
    for top in ("metis_compile", "passes", "kernels"):
        for path in sorted((root / top).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            if "passes" in parts[1:2] or "kernels" in parts[1:2]:
                continue  # the links: these files are seen at the top level
            parts = parts if top == "metis_compile" else ("metis_compile", *parts)
            yield ".".join(parts).removesuffix(".__init__"), path.read_text()


def imported(source: str) -> Iterator[str]:
    """The dotted names of the package that a module imports, at any depth."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.split(".")[0] == "metis_compile")
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "metis_compile":
            yield from (f"{node.module}.{name.name}" for name in node.names)


def wrong(module: str, source: str) -> list[str]:
    """What `module` imports against the order."""
    found = []
    mine = module.split(".")
    for name in imported(source):
        theirs = name.split(".")
        if len(mine) == 1 or len(theirs) == 1 or theirs[1] in OF_THE_ROOT:
            continue
        pairs = [(LAYERS, mine[1], theirs[1])]
        if mine[1] == theirs[1] == "passes" and len(mine) > 2 and len(theirs) > 2:
            pairs.append((PASSES, mine[2], theirs[2]))
        if any(a != b and order.index(b) > order.index(a) for order, a, b in pairs):
            found.append(f"{module} imports {name}")
    return found


def test_every_module_imports_downwards() -> None:
    assert [line for module, source in sources(ROOT) for line in wrong(module, source)] == []


def test_every_folder_has_a_layer() -> None:
    assert {module.split(".")[1] for module, _ in sources(ROOT) if "." in module} == set(LAYERS)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("metis_compile.numerics.encode", "from metis_compile.ops.quantization import QUANTIZE"),
        ("metis_compile.passes.joint.find", "def f():\n    from metis_compile.backend import metis"),
        ("metis_compile.passes.graph.views", "from metis_compile.passes.joint import find"),
        ("metis_compile.policy.rule", "import metis_compile.options"),
    ],
)
def test_an_import_upwards_is_found(module: str, source: str) -> None:
    assert wrong(module, source)
