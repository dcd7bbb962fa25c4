"""Inductor's and AOTAutograd's caches: warm in a second process, never stale, and what is shown is right on a hit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = """
import json, sys
import torch
from torch._dynamo.utils import counters

def run(policy, capture=False):
    torch.compiler.reset()
    counters.clear()
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 16))
    x = torch.randn(16, 16)
    compiled = torch.compile(model, backend="metis", options={"policy": policy} if policy else None)
    loss = compiled(x).square().sum()
    loss.backward()
    names = ("autograd_cache_hit", "autograd_cache_miss", "autograd_cache_bypass")
    stats = {k: counters["aot_autograd"][k] for k in names}
    stats["fx_bypass"] = counters["inductor"]["fxgraph_cache_bypass"]
    return {"loss": float(loss.detach()), **stats}

results = {}
"""


def python(code: str, cache: Path, **env: str) -> Any:
    """Runs SCRIPT and `code` in a process of its own and returns its `results`."""
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache), "METIS_VERIFY": "0", **env}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT + code + "\nprint(json.dumps(results))"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


# What a second process does with warm caches, in this order: one process, for to start one takes as long as all of it.
WARM = {
    "found by name": """
from torch._inductor.select_algorithm import extern_kernels
results["again"] = run("nvfp4")
results["product of packed operands"] = hasattr(extern_kernels, "metis_gemm")
""",
    "shown": """
import metis_compile
with metis_compile.capture() as captured:
    results["captured"] = run("nvfp4")
results["sites"] = [s.gemm for g in captured.graphs for s in g.sites]
results["forward"] = "metis.quantize" in str(captured.graphs[0].forward.graph)
model = torch.nn.Sequential(torch.nn.Linear(16, 16))
results["explained"] = [s.gemm for s in metis_compile.explain(model, torch.randn(16, 16), policy="nvfp4").sites]
results["after"] = run("nvfp4")
""",
    "another inner compile": """
from metis_compile.backend import compile_graph
from metis_compile.inspection.dry_run import run_eagerly
from metis_compile.options import read_options
from metis_compile.passes.record import tally

run("nvfp4")
results["hits"] = counters["aot_autograd"]["autograd_cache_hit"]
config, patches = read_options({"policy": "nvfp4"}, None)

def eagerly(gm, inputs, **_):
    return compile_graph(gm, inputs, config, patches, inner_compile=run_eagerly)

torch.compiler.reset()
with tally() as tallies:
    torch.compile(torch.nn.Sequential(torch.nn.Linear(16, 16)), backend=eagerly)(torch.randn(16, 16)).sum().backward()
results["seen"] = [(each.seen, each.products) for each in tallies]
""",
    "environment": """
import os
os.environ["METIS_POLICY"] = "mxfp4"
results["mxfp4"] = run(None)
results["mxfp4 by option"] = run("mxfp4")
os.environ["METIS_POLICY"] = "fp8"
results["fp8"] = run(None)
results["fp8 by option"] = run("fp8")
del os.environ["METIS_POLICY"]
""",
    "changes": """
import metis_compile, metis_compile.backend as backend
from metis_compile import Policy
results["same policy, another text"] = run(Policy.load("nvfp4"))
results["other policy"] = run("mxfp8")
results["high"] = run("high")
digest = backend.sources_digest()
backend.sources_digest = lambda: "changed"
results["changed source"] = run("nvfp4")
backend.sources_digest = lambda: digest
metis_compile.__version__ = "0.0.0"
results["changed version"] = run("nvfp4")
""",
}


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The results of each part of WARM."""
    cache = tmp_path_factory.mktemp("inductor")
    first = python('results["first"] = run("nvfp4")', cache)["first"]
    assert first["autograd_cache_miss"] == 1
    assert first["autograd_cache_bypass"] == first["fx_bypass"] == 0
    return python(
        "found = {}"
        + "".join(f"{code}found[{name!r}], results = results, {{}}\n" for name, code in WARM.items())
        + "results = found",
        cache,
    )


def test_found_by_name_and_warm_in_a_second_process(warm: Any) -> None:
    """Up to there the script imports nothing of metis: the entry point is enough."""
    found = warm["found by name"]
    assert found["again"]["autograd_cache_hit"] == 1
    assert found["again"]["autograd_cache_miss"] == 0
    assert found["product of packed operands"], "which code on a GPU may call"


def test_changes_compile_anew(warm: Any) -> None:
    found = dict(warm["changes"])
    assert found.pop("same policy, another text")["autograd_cache_hit"] == 1
    assert {name: r["autograd_cache_hit"] for name, r in found.items()} == dict.fromkeys(found, 0)
    assert found["other policy"]["loss"] != found["changed source"]["loss"] != found["high"]["loss"]


def test_the_environment_names_the_policy_of_those_who_pass_only_a_backend(warm: Any) -> None:
    found = warm["environment"]
    assert found["mxfp4"]["loss"] == found["mxfp4 by option"]["loss"]
    assert found["fp8"]["loss"] == found["fp8 by option"]["loss"] != found["mxfp4"]["loss"]
    hits = {name: result["autograd_cache_hit"] for name, result in found.items()}
    assert hits == {"mxfp4": 0, "mxfp4 by option": 1, "fp8": 0, "fp8 by option": 1}


def test_what_is_shown_is_right_on_a_hit(warm: Any) -> None:
    found = warm["shown"]
    assert found["sites"] == ["fprop", "wgrad"] == found["explained"]
    assert found["forward"]
    assert found["after"]["autograd_cache_hit"] == 1, "looking did not spoil the cache"


def test_another_inner_compile_is_given_every_graph(warm: Any) -> None:
    """AOTAutograd's key says nothing of it: what Inductor compiled was once taken for what ran the graph eagerly."""
    assert warm["another inner compile"] == {"hits": 1, "seen": [[True, 2]]}


def test_sources_digest_covers_what_decides_code_and_nothing_else(tmp_path: Path) -> None:
    import metis_compile
    from metis_compile import backend

    copy = tmp_path / "package"
    shutil.copytree(Path(metis_compile.__file__).parent, copy)
    assert backend.digest_of(copy) == backend.sources_digest()
    for name in (
        "backend.py",
        "compat.py",
        "numerics/quantize.py",
        "passes/joint/rewrite.py",
        "kernels/materialize.py",
        "kernels/cpu/quantize.cpp",
    ):
        before = backend.digest_of(copy)
        (copy / name).write_bytes((copy / name).read_bytes() + b"\n")
        assert backend.digest_of(copy) != before, name
    before = backend.digest_of(copy)
    for name in ("cli/root.py", "train/loop.py", "bench/step.py", "inspection/explain.py"):
        (copy / name).write_bytes((copy / name).read_bytes() + b"\n")
    assert backend.digest_of(copy) == before


def test_uuid_depends_on_what_the_rules_see() -> None:
    import torch
    from torch import nn

    from metis_compile.backend import _uuid
    from metis_compile.naming.graph_names import names_of
    from metis_compile.options import read_options

    keys = []

    def key_of(gm: torch.fx.GraphModule, example_inputs: Any, **_: Any) -> Any:
        for policy in ("nvfp4", "mxfp8"):
            keys.append(_uuid(gm, read_options({"policy": policy}, None)[0], names_of(gm).write()))
        return gm.forward

    for name in ("up", "lm_head"):
        torch.compiler.reset()
        torch.compile(nn.ModuleDict({name: nn.Linear(4, 4)})[name].forward, backend=key_of)(torch.randn(2, 4))
        model = nn.Sequential()
        model.add_module(name, nn.Linear(4, 4))
        torch.compile(model, backend=key_of)(torch.randn(2, 4))
    assert len(set(keys)) >= 6, "policy and module names are in the key"


STATE = """
import metis_compile
split = '{ format = "nvfp4", split = { kind = "spectral", rank = 3 } }'
policy = metis_compile.Policy.from_toml(f'''
[recipe.r]
weight = "nvfp4"
activation = {split}
gradient = {split}
[[rule]]
recipe = "r"
''')
counters.clear()
models = []
for seed in (0, 0, 1):
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(16, 16))
    compiled = torch.compile(model, backend="metis", options={"policy": policy})
    for _ in range(2):
        compiled(torch.randn(16, 16)).square().sum().backward()
    kept = metis_compile.state_dict(compiled)["0.weight"]
    bases = [kept[part] for part in ("activation", "gradient")]
    models.append((model, [t.double().sum().item() for t in bases]))
results["kept"] = [kept for _, kept in models]
results["hits"] = counters["aot_autograd"]["autograd_cache_hit"]
results["misses"] = counters["aot_autograd"]["autograd_cache_miss"]
results["bypassed"] = counters["aot_autograd"]["autograd_cache_bypass"] + counters["inductor"]["fxgraph_cache_bypass"]
"""


def test_state_across_steps_with_warm_caches(tmp_path: Path) -> None:
    """The same graph from the cache, with a state of its own in each process and for each model."""
    cold, warm = python(STATE, tmp_path), python(STATE, tmp_path)
    assert (cold["hits"], cold["misses"], warm["hits"], warm["misses"]) == (0, 1, 1, 0)
    assert cold["bypassed"] == warm["bypassed"] == 0
    assert warm["kept"] == cold["kept"]
    first, again, other = warm["kept"]
    assert first == again
    assert all(a != b for a, b in zip(first, other, strict=True))
