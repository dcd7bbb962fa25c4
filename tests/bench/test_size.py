from dataclasses import replace
from typing import Any

import pytest

from metis_compile.bench.errors import BenchError
from metis_compile.bench.size import size_text, tokens_of
from metis_compile.train.errors import TrainError


def test_heads_and_sequences_follow(settings: Any) -> None:
    made = settings(width=512, layers=4, tokens=2048)
    assert (made.heads, made.batch, made.context) == (8, 8, 256)
    assert settings(width=96).heads == 1
    assert settings(tokens=100).context == 100
    assert tokens_of(made) == 2048
    assert size_text(made) == "width 512, 4 layers, 2048 tokens, float32"
    assert size_text(made, replace(made, width=64)) == "width 512 and 64, 4 layers, 2048 tokens, float32"


@pytest.mark.parametrize("tokens", [0, -1, 300])
def test_tokens_that_make_no_sequences(settings: Any, tokens: int) -> None:
    with pytest.raises(BenchError, match=f"tokens must be a multiple of 256, .* got {tokens}"):
        settings(tokens=tokens)


def test_a_width_that_is_none(settings: Any) -> None:
    with pytest.raises(TrainError, match="width must be at least 1, got 0"):
        settings(width=0)
