from pathlib import Path

import pytest
import torch

from metis_compile.train.corpus import Corpus, library_sources, load_file, load_library
from metis_compile.train.errors import TrainError


@pytest.fixture(scope="module")
def library() -> Corpus:
    return load_library()


def test_the_standard_library_is_megabytes_of_source(library: Corpus) -> None:
    assert library.train.dtype == torch.uint8
    assert library.train.numel() > 5_000_000
    # Whole files are held out, so the share is near a tenth and not exactly one.
    assert 0.05 < library.validation.numel() / library.train.numel() < 0.2
    assert b"def __init__(self" in bytes(library.train[:2_000_000].tolist())


def test_loading_twice_gives_the_same_text(library: Corpus) -> None:
    again = load_library()
    assert torch.equal(again.train, library.train)
    assert again.digest == library.digest


def make_library(folder: Path, count: int) -> Path:
    for i in range(count):
        (folder / f"m{i:03}.py").write_text(f"# {i}\n")
    return folder


def test_sources_come_in_name_order_without_tests_and_installed_packages(tmp_path: Path) -> None:
    for name in ("b.py", "a.py", "pkg/__init__.py", "test/t.py", "site-packages/s.py", "pkg/tests/x.py", "z.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    names = [p.relative_to(tmp_path).as_posix() for p in library_sources(tmp_path)]
    assert names == ["a.py", "b.py", "pkg/__init__.py"]


def test_every_tenth_source_is_held_out_whole(tmp_path: Path) -> None:
    corpus = load_library(make_library(tmp_path, 120))
    held_out = bytes(corpus.validation.tolist()).decode().split("\n")[:-1]
    assert held_out == [f"# {i}" for i in range(9, 120, 10)]
    kept = bytes(corpus.train.tolist()).decode().split("\n")[:-1]
    assert sorted(held_out + kept) == sorted(f"# {i}" for i in range(120))


def test_a_python_without_sources_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"found 7 Python sources in .*--text") as caught:
        load_library(make_library(tmp_path, 7))
    assert "\n" not in str(caught.value)


def test_a_batch_depends_on_seed_and_step_only(library: Corpus) -> None:
    def batch(seed: int, step: int) -> torch.Tensor:
        return library.batch(seed=seed, step=step, batch=4, context=32)[0]

    first = batch(0, 5)
    torch.manual_seed(123)
    library.batch(seed=0, step=6, batch=4, context=32)
    assert torch.equal(batch(0, 5), first)
    assert not torch.equal(batch(0, 6), first)
    assert not torch.equal(batch(1, 5), first)


def test_targets_are_the_tokens_that_follow(library: Corpus) -> None:
    tokens, targets = library.batch(seed=0, step=0, batch=4, context=32)
    assert tokens.shape == targets.shape == (4, 32)
    assert tokens.dtype == targets.dtype == torch.int64
    assert torch.equal(tokens[:, 1:], targets[:, :-1])


def test_validation_batches_span_the_text_and_are_fixed() -> None:
    corpus = Corpus.from_bytes("x", b"a" * 100, bytes(range(256)))
    batches = corpus.validation_batches(count=3, batch=2, context=8)
    assert len(batches) == 3
    assert batches[0][0][0].tolist() == list(range(8))
    assert batches[-1][1][-1].tolist() == list(range(248, 256))
    again = corpus.validation_batches(count=3, batch=2, context=8)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(batches, again, strict=True))


def test_the_digest_sees_the_bytes_and_the_split() -> None:
    digests = {
        Corpus.from_bytes("x", b"ab", b"c").digest,
        Corpus.from_bytes("x", b"a", b"bc").digest,
        Corpus.from_bytes("x", b"ab", b"d").digest,
    }
    assert len(digests) == 3
    assert Corpus.from_bytes("y", b"ab", b"c").digest in digests


def test_a_file_is_split_at_nine_tenths(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_bytes(bytes(range(100)))
    corpus = load_file(path)
    assert corpus.train.tolist() == list(range(90))
    assert corpus.validation.tolist() == list(range(90, 100))


def test_a_missing_file_and_a_short_text_are_errors(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"cannot read the text .*nowhere"):
        load_file(tmp_path / "nowhere")
    path = tmp_path / "t"
    path.write_bytes(b"x" * 100)
    corpus = load_file(path)
    corpus.require(9)
    with pytest.raises(TrainError, match="leaves 10 bytes for validation, a context of 10 needs more"):
        corpus.require(10)
    path.write_bytes(b"")
    with pytest.raises(TrainError, match="leaves 0 bytes"):
        load_file(path).require(1)
