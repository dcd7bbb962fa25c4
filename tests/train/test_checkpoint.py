from pathlib import Path

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
        "flipped": data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :],
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
    with pytest.raises(TrainError, match=r"cannot write .*checkpoint\.pt: No space left on device"):
        go()
    assert finished.read_bytes() == before
    assert [p.name for p in finished.parent.iterdir() if "partial" in p.name] == []


def test_the_file_is_put_in_place_by_renaming(go, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = finished.read_bytes()

    def refused(self: Path, target: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "replace", refused)
    with pytest.raises(TrainError, match="Permission denied"):
        go()
    assert finished.read_bytes() == before
