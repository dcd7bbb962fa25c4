"""The mark `gpu`, of tests that need a CUDA GPU: `-m gpu` runs all of them, and without one they are skipped.

And the fixture `nan_filled`: what Inductor's code allocates on the GPU starts as NaN, so that a gap in it shows.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch._inductor.codecache import PyCodeCache

REASON = "needs a CUDA GPU, and torch finds none"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu") is not None:
                item.add_marker(pytest.mark.skip(reason=REASON))


@pytest.fixture
def nan_filled(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.Size]]:
    """The shapes of what was allocated so, in order. Of code that is compiled while it is in use."""
    PyCodeCache.cache_clear()  # code that is loaded already has the allocator that it was loaded with
    guards, seen = torch._C._dynamo.guards, []
    empty = guards._empty_strided_cuda

    def poisoned(*args: object) -> torch.Tensor:
        buffer = empty(*args)
        seen.append(buffer.shape)
        if buffer.numel() and buffer.dtype != torch.bool:
            count = buffer.untyped_storage().nbytes() // buffer.itemsize
            torch.as_strided(buffer, (count,), (1,)).view(torch.uint8).fill_(255)
        return buffer

    monkeypatch.setattr(guards, "_empty_strided_cuda", poisoned)
    yield seen
    PyCodeCache.cache_clear()
