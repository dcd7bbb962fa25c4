"""`metis train --monitor`: the run's curve stays what it is, and its statistics are in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from graphs import eager_backend

from metis_compile.monitoring.difference import difference
from metis_compile.monitoring.reading import read_run
from metis_compile.train.errors import TrainError
from metis_compile.train.loop import Options, run
from metis_compile.train.variant import Variant


@pytest.fixture(autouse=True)
def _eagerly() -> None:
    """A name for the backend, which the report says."""
    if "metis-eager" not in torch._dynamo.list_backends(exclude_tags=None):
        torch._dynamo.register_backend(eager_backend("nvfp4"), name="metis-eager")


def train(settings: Any, out: Path, **options: Any) -> Any:
    torch.compiler.reset()  # as in a process of its own: else it runs what was compiled before
    variants = (
        Variant(label="full precision", backend="eager"),
        Variant(label="nvfp4", backend="metis-eager", digest="1"),
    )
    return run(settings(), Options(out=out, **options), variants=variants)


def test_statistics_of_a_run(settings: Any, tmp_path: Path) -> None:
    path = tmp_path / "statistics.jsonl"
    plain = train(settings, tmp_path / "plain")
    monitored = train(settings, tmp_path / "monitored", monitor=path, monitor_every=2)
    assert monitored.policy.losses == plain.policy.losses
    assert monitored.policy.validation_loss == plain.policy.validation_loss
    assert monitored.files["statistics"] == path
    read = read_run(tmp_path / "monitored")
    assert sorted(read.records) == [0, 2, 4]
    assert list(read.losses.values()) == monitored.policy.losses
    found = {(r["site"], r["gemm"]) for r in read.records[4].values() if r["operand"] == "product"}
    assert {site for site, _ in found} >= {"blocks.0.mlp.up", "blocks.0.mlp.down"}
    assert {gemm for _, gemm in found} == {"fprop", "dgrad", "wgrad"}
    assert difference(read, read).differing == 0


def test_a_file_that_cannot_be_written_ends_it_before_it_starts(settings: Any, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"cannot write the statistics to .*: "):
        train(settings, tmp_path / "out", monitor=tmp_path)
    with pytest.raises(TrainError, match="monitor-every must be at least 1, got 0"):
        train(settings, tmp_path / "out", monitor_every=0)
