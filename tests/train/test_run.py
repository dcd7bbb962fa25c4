import json
import signal
from pathlib import Path

import pytest
import torch

from metis_compile.train.errors import TrainError
from metis_compile.train.loop import Interrupted
from metis_compile.train.report import Report


def test_equal_variants_have_equal_curves_and_no_gap(go) -> None:
    report = go()
    assert report.full_precision.losses == report.policy.losses
    numbers = report.to_dict()
    assert numbers["train_gap_percent"] == numbers["validation_gap_percent"] == 0
    assert numbers["saved_bytes_ratio"] == 1
    assert numbers["step_time_ratio"] > 0


def test_noise_in_one_model_leaves_the_other_alone(go, noisy, tmp_path: Path) -> None:
    quiet = go(out=tmp_path / "quiet")
    loud = go(out=tmp_path / "loud", policy=noisy)
    assert loud.full_precision.losses == quiet.full_precision.losses
    assert loud.policy.losses != quiet.policy.losses
    assert go(out=tmp_path / "again", policy=noisy).policy.losses == loud.policy.losses


def test_noise_is_fresh_every_step(go, backend) -> None:
    drawn = []

    def forward(call, model, tokens):
        drawn.append(torch.rand(()).item())
        return model(tokens)

    go(policy=backend("drawing", forward))
    steps = [drawn[0], *drawn[2:7]]  # after the first step its forward is run once more, to count saved bytes
    assert len(set(steps)) == 6


def test_a_run_leaves_the_callers_random_state(go, noisy) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    go(policy=noisy)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_run_on_the_cpu_is_deterministic_and_puts_the_switch_back(go, backend) -> None:
    seen = []

    def forward(call, model, tokens):
        seen.append(torch.are_deterministic_algorithms_enabled())
        return model(tokens)

    go(policy=backend("watching", forward))
    assert set(seen) == {True}
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory


def test_seeds_matter(go, tmp_path: Path) -> None:
    first, second = (go(seed=seed, out=tmp_path / str(seed)) for seed in (0, 1))
    assert first.policy.losses != second.policy.losses


@pytest.mark.parametrize(("call", "saved"), [(0, 1), (3, 3), (6, 6)])
def test_a_resumed_run_goes_on_with_the_same_curve(go, noisy, interrupting, tmp_path: Path, call, saved) -> None:
    # Forward 1 counts the saved bytes, so that forward 4 is the fourth step's.
    whole = go(out=tmp_path / "whole", policy=noisy)
    stopped = go(policy=interrupting(call))
    assert stopped == Interrupted(signal=signal.SIGINT, step=saved, saved=saved)
    resumed = go(policy=noisy, resume=True)
    for side in ("full_precision", "policy"):
        assert getattr(resumed, side).losses == getattr(whole, side).losses
        assert getattr(resumed, side).validation_loss == getattr(whole, side).validation_loss
        assert len(getattr(resumed, side).losses) == 6


def test_sigterm_is_noted_as_such(go, interrupting) -> None:
    assert go(policy=interrupting(2, signal.SIGTERM)).signal == signal.SIGTERM


def test_signal_handlers_are_put_back(go, interrupting) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    go(policy=interrupting(2))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_second_signal_stops_at_once_and_keeps_the_last_checkpoint(go, noisy, interrupting, tmp_path) -> None:
    stopped = go(policy=interrupting(5, times=2), checkpoint_every=2)
    assert stopped == Interrupted(signal=signal.SIGINT, step=4, saved=4, cut_off="KeyboardInterrupt")
    whole = go(out=tmp_path / "whole", policy=noisy)
    resumed = go(policy=noisy, resume=True)
    assert resumed.policy.losses == whole.policy.losses


def test_an_interrupt_before_anything_was_saved_says_so(go, interrupting) -> None:
    assert go(policy=interrupting(0, times=2)).saved is None


def test_a_step_that_fails_by_itself_is_an_error(go, backend) -> None:
    def forward(call, model, tokens):
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        go(policy=backend("failing", forward))


def test_a_crash_loses_the_steps_since_the_last_checkpoint_only(go, backend, tmp_path: Path) -> None:
    def forward(call, model, tokens):
        if call == 5:
            raise RuntimeError("boom")
        return model(tokens)

    with pytest.raises(RuntimeError, match="boom"):
        go(policy=backend("failing", forward), checkpoint_every=2)
    resumed = go(resume=True)
    assert resumed.policy.losses == go(out=tmp_path / "whole").policy.losses


def test_resuming_a_finished_run_reports_again(go) -> None:
    first = go()
    again = go(resume=True)
    assert again.policy == first.policy


def test_what_a_run_writes(go, tmp_path: Path) -> None:
    report = go()
    out = tmp_path / "out"
    assert sorted(p.name for p in out.iterdir()) == ["checkpoint.pt", "loss.png", "report.json"]
    assert (out / "loss.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert json.loads((out / "report.json").read_text()) == json.loads(json.dumps(report.to_dict()))


def test_the_checkpoint_is_written_every_so_many_steps(go, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []
    monkeypatch.setattr("metis_compile.train.checkpoint.save", lambda *args, step, **kwargs: steps.append(step))
    go(checkpoint_every=4)
    assert steps == [4, 6]


def test_a_loss_that_is_not_finite_is_reported_without_a_number(go, backend) -> None:
    def forward(call, model, tokens):
        return model(tokens) * float("nan")

    report = go(policy=backend("diverging", forward))
    numbers = report.to_dict()
    assert numbers["train_gap_percent"] is None
    assert numbers["policy"]["losses"] == [None] * 6
    assert isinstance(report, Report)


def test_a_folder_that_cannot_be_made_is_one_clear_line(go, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainError, match=r"cannot make the folder .*file/out: Not a directory"):
        go(out=tmp_path / "file" / "out")
