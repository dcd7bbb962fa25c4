import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from metis_compile.train import checkpoint
from metis_compile.train.errors import TrainError


@pytest.fixture
def finished(go, tmp_path: Path) -> Path:
    go()
    return tmp_path / "out" / checkpoint.FILE


def test_resuming_without_a_checkpoint_says_what_to_do(go) -> None:
    with pytest.raises(TrainError, match=r"there is no .*checkpoint\.pt to resume from: leave out --resume"):
        go(resume=True)


def damage(kind: str, data: bytes) -> bytes:
    middle = len(data) // 2
    return {
        "empty": b"",
        "truncated": data[:middle],
        "text": b"hello\n",
        # More than the padding that may lie between two tensors.
        "flipped": data[:middle] + bytes(byte ^ 0xFF for byte in data[middle : middle + 256]) + data[middle + 256 :],
    }[kind]


@pytest.mark.parametrize("kind", ["empty", "truncated", "text", "flipped"])
def test_a_damaged_checkpoint_is_one_clear_line(go, finished: Path, kind: str) -> None:
    finished.write_bytes(damage(kind, finished.read_bytes()))
    with pytest.raises(TrainError, match="is damaged and cannot be resumed") as caught:
        go(resume=True)
    assert "\n" not in str(caught.value)


def test_another_file_in_its_place_is_an_error(go, finished: Path) -> None:
    torch.save({"model": 1}, finished)
    with pytest.raises(TrainError, match="was not written by this version"):
        go(resume=True)


def test_other_settings_are_named(go, finished: Path) -> None:
    with pytest.raises(TrainError, match="is of a run with steps 6 and not 7, width 16 and not 32"):
        go(resume=True, width=32, steps=7)


def test_another_text_is_an_error(go, finished: Path, text: Path) -> None:
    text.write_text(text.read_text() + "!")
    with pytest.raises(TrainError, match="is of a run on another text"):
        go(resume=True)


def test_a_changed_policy_is_an_error(go, finished: Path) -> None:
    with pytest.raises(TrainError, match="whose policy 'best' read otherwise"):
        go(resume=True, digest="2")


def test_its_settings_can_be_read_without_the_run(go, finished: Path, settings) -> None:
    assert checkpoint.read_settings(finished.parent) == settings()


def test_a_failed_write_leaves_the_checkpoint_before_it(go, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = finished.read_bytes()

    def full(state: object, file: object) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    (problem,) = go().unwritten
    assert re.fullmatch(r"cannot write .*checkpoint\.pt: No space left on device", problem)
    assert finished.read_bytes() == before
    assert [p.name for p in finished.parent.iterdir() if "partial" in p.name] == []


def test_the_file_is_put_in_place_by_renaming(go, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = finished.read_bytes()

    def refused(self: Path, target: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "replace", refused)
    (problem,) = go().unwritten
    assert "Permission denied" in problem
    assert finished.read_bytes() == before


def test_a_disk_that_is_full_for_a_while_costs_one_checkpoint(
    go, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = go(out=tmp_path / "whole")
    torch_save, written = torch.save, []

    def full_once(state: Any, file: object) -> None:
        written.append(state["step"])
        if state["step"] == 2:
            raise OSError(28, "No space left on device")
        torch_save(state, file)

    monkeypatch.setattr(torch, "save", full_once)
    report = go(checkpoint_every=2)
    assert written == [2, 4, 6]
    assert report.unwritten == ()
    assert report.policy.losses == whole.policy.losses


def test_a_file_of_torch_that_takes_less_than_it_was_given(go, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def short(state: object, file: object) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598")

    monkeypatch.setattr(torch, "save", short)
    assert "unexpected pos" in go().unwritten[0]


def replaced(*path: str, by: Any) -> Callable[[dict[str, Any]], None]:
    """Puts another value at a place of a checkpoint; ... takes away what is there."""

    def change(state: dict[str, Any]) -> None:
        *outer, last = path
        for name in outer:
            state = state[name]
        if by is ...:
            del state[last]
        else:
            state[last] = by

    return change


def smaller_moments(state: dict[str, Any]) -> None:
    moments = state["learners"]["policy"]["optimizer"]["state"][0]
    moments["exp_avg"] = moments["exp_avg"][:1].clone()


HISTORY = ("learners", "policy", "history")


WRONG: list[tuple[Callable[[dict[str, Any]], None], str]] = [
    *((replaced(part, by=...), f"its {part} must be") for part in ("settings", "text", "policies", "step", "learners")),
    *((replaced(part, by=[1]), f"its {part} must be") for part in ("settings", "text", "policies", "step", "learners")),
    (replaced("settings", "width", by="wide"), "width must be a int, got 'wide'"),
    (replaced("settings", "width", by=...), "its settings lack width"),
    (replaced("settings", "breadth", by=1), "unknown settings: breadth"),
    (replaced("settings", "text", by=3), "text must be a str, got 3"),
    (replaced("settings", "learning_rate", by=float("inf")), "learning rate must be a finite number"),
    (replaced("learners", "policy", by=...), "it has no learner 'policy'"),
    (replaced("learners", "policy", by=3), "cannot be resumed"),
    *(
        (replaced("learners", "policy", part, by=...), f"it has no '{part}'")
        for part in ("model", "optimizer", "history")
    ),
    *((replaced("learners", "policy", part, by=[1]), "") for part in ("model", "optimizer", "across_steps", "history")),
    (replaced("learners", "policy", "model", "head.weight", by=torch.zeros(2)), ""),
    (replaced("learners", "policy", "optimizer", "state", by={}), ""),
    (smaller_moments, "the optimizer's exp_avg must be of its parameter's shape"),
    (replaced(*HISTORY, "losses", by=[1.0]), "must have 6 losses, one for each step, got 1"),
    (replaced(*HISTORY, "losses", by="abcdef"), "losses must be a list of numbers"),
    (replaced(*HISTORY, "seconds", by=None), "seconds must be a list of numbers"),
    (replaced(*HISTORY, "saved_bytes", by=None), "saved_bytes must be a number"),
    (replaced(*HISTORY, "pages", by=1), "pages"),
    (replaced("step", by=5), "must have 5 losses"),
]


def test_a_part_that_is_missing_or_another_thing(go, finished: Path) -> None:
    whole = finished.read_bytes()
    for change, said in WRONG:
        finished.write_bytes(whole)
        state = torch.load(finished)
        change(state)
        torch.save(state, finished)
        with pytest.raises(TrainError, match="cannot be resumed") as caught:
            go(resume=True)
        assert said in str(caught.value)
        assert str(finished) in str(caught.value)
        assert "\n" not in str(caught.value)
