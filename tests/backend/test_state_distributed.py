"""What is kept where a model is replicated or sharded over processes, and in torch.distributed.checkpoint."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from kept_across_ranks import SITES, make
from kept_bases import batch, compiled, same, state, step
from ranks_of import run_ranks
from torch import nn

import metis_compile
from metis_compile import KeptState

WORKER = Path(__file__).parents[1] / "support" / "kept_across_ranks.py"


def processes(folder: Path, world: int, what: str) -> None:
    run_ranks(WORKER, folder, world, what, environment={})


def equal(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(
        a[site].keys() == b[site].keys() and all(torch.equal(a[site][part], b[site][part]) for part in a[site])
        for site in a
    )


@pytest.mark.filterwarnings("ignore")
def test_two_processes_one_and_four(tmp_path: Path) -> None:
    """DDP, FSDP1 and FSDP2 name what they keep as the model does; a checkpoint of theirs fits other numbers."""
    processes(tmp_path, 2, "train")
    of_two = [torch.load(tmp_path / f"kept_{rank}.pt") for rank in range(2)]
    assert not equal(*of_two), "each has bases of its own rows"
    model = make()
    dcp.load({"metis": KeptState(model)}, checkpoint_id=tmp_path / "of two", no_dist=True)
    assert equal(metis_compile.state_dict(model), of_two[0])
    step(compiled(model), batch(7), batch(8))
    kept = metis_compile.state_dict(model)
    assert list(kept) == SITES
    dcp.save({"metis": KeptState(model)}, checkpoint_id=tmp_path / "of one", no_dist=True)
    processes(tmp_path, 4, "load")
    for rank in range(4):
        assert equal(torch.load(tmp_path / f"loaded_{rank}.pt"), kept)
    shares = [torch.load(tmp_path / f"share_{rank}.pt") for rank in range(2)]
    assert shares[0]["0.up.weight"]["share"].tolist() == [24, 32]
    for rank in range(4):  # of a shard of 12 features: what is of its other dimension fits
        fitting = torch.load(tmp_path / f"fitting_{rank}.pt")
        assert list(fitting) == SITES
        for site, part in (("0.up.weight", "activation"), ("0.down.weight", "gradient")):
            assert list(fitting[site]) == [part, "parameter", "share"]
            assert torch.equal(fitting[site][part], shares[rank % 2][site][part])


@pytest.mark.filterwarnings("ignore")
def test_a_share_is_refused_where_the_whole_is_computed_with() -> None:
    """As of tensor parallelism in two, without running it: the state says what it is a share of."""
    model = make()
    run = compiled(model)
    step(run, batch(0), batch(1))
    kept = metis_compile.state_dict(run)
    assert "share" not in kept["0.up.weight"]
    kept["0.up.weight"]["share"] = torch.tensor([24, 32])
    kept["0.up.weight"]["gradient"] = kept["0.up.weight"]["gradient"][:, :24].clone()
    kept["0.up.weight"]["gradient.steps"] = torch.zeros(1)
    torch.compiler.reset()
    said = (
        r"0\.up\.weight: gradient: it has the shape \[2, 24\], of a share \[24, 32\] of the parameter, and this "
        r"process computes with \[48, 32\]: tensor parallelism of another degree"
    )
    with pytest.raises(ValueError, match=said):
        metis_compile.load_state_dict(model, kept)
    assert state(model) == {}
    left = metis_compile.load_state_dict(model, kept, strict=False)
    assert left == ["0.up.weight: gradient", "0.up.weight: gradient.steps"]
    assert "0.up.weight.activation" in state(model)


def test_a_checkpoint_without_what_is_kept_is_refused(tmp_path: Path) -> None:
    model = make()
    dcp.save({"model": model.state_dict()}, checkpoint_id=tmp_path, no_dist=True)
    with pytest.raises(ValueError, match="holds nothing that metis kept: it was saved without KeptState"):
        dcp.load({"metis": KeptState(model, tmp_path)}, checkpoint_id=tmp_path, no_dist=True)
    with pytest.raises(ValueError, match="must be given the one entry that it saved"):
        KeptState(model).load_state_dict({})


@pytest.mark.filterwarnings("ignore")
def test_the_pages_code_runs(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text()
    model = make()
    step(compiled(model), batch())
    namespace = {"model": model, "folder": tmp_path, "metis_compile": metis_compile}
    before = state(model)
    found = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(found) == 2
    for code in found:
        exec(compile(code, "checkpoints.md", "exec"), namespace)
        assert same(state(model), before)


def test_strict_is_that_of_loading(tmp_path: Path) -> None:
    model = make()
    step(compiled(model), batch())
    dcp.save({"metis": KeptState(model)}, checkpoint_id=tmp_path, no_dist=True)
    half = nn.Sequential(make()[0])
    with pytest.raises(ValueError, match=r"1\.up\.weight: it is of another model"):
        dcp.load({"metis": KeptState(half)}, checkpoint_id=tmp_path, no_dist=True)
    assert state(half) == {}
    dcp.load({"metis": KeptState(half, strict=False)}, checkpoint_id=tmp_path, no_dist=True)
    assert list(metis_compile.state_dict(half)) == SITES[:2]
