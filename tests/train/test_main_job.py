"""The main job for real, at its smallest: both models compiled by Inductor."""

import math

from torch._dynamo.utils import counters

import metis_compile
from metis_compile.train.loop import Options, run

# Few sites, so that it compiles in seconds.
NARROW = """
extends = "nvfp4"

[[rule]]
module = "*.attn.*"
recipe = "high"
"""


def test_the_policy_trains_beside_full_precision(settings, tmp_path, recwarn) -> None:
    counters.clear()
    policy_file = tmp_path / "narrow.toml"
    policy_file.write_text(NARROW)
    with metis_compile.capture() as captured:
        report = run(settings(policy=str(policy_file), width=32, context=32), Options(out=tmp_path / "out"))
    # Its rules match the model, and what else is compiled first is no concern of the user's.
    assert [str(w.message) for w in recwarn if issubclass(w.category, metis_compile.PolicyWarning)] == []
    full, policy = report.full_precision, report.policy
    assert (full.backend, policy.backend, policy.label) == ("inductor", "metis", "narrow")
    # Quantization moves the losses, and not far.
    assert full.losses != policy.losses
    for ours, theirs in zip(policy.losses, full.losses, strict=True):
        assert math.isclose(ours, theirs, rel_tol=0.05)
    # One graph each for the warm-up and the model: validation compiles nothing.
    assert len(captured.graphs) == 2
    assert counters["stats"]["unique_graphs"] == 4
    # Equal runs give equal bits on the CPU; the caches make the second one quick.
    again = run(settings(policy=str(policy_file), width=32, context=32), Options(out=tmp_path / "again"))
    assert again.full_precision.losses == full.losses
    assert again.policy.losses == policy.losses
    # What autograd holds is what the partitioner gave it.
    assert policy.saved_bytes == captured.graphs[1].saved_bytes
    assert policy.saved_bytes < full.saved_bytes
