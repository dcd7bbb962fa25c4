"""Operators refuse the same, in the same words, running and while they are traced."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only


def assert_refused(op: Any, given: list[Any], error: type[Exception], message: str) -> None:
    """Raised, for real arguments and for fake ones, by an error of this type that starts with `message`, a pattern."""
    said = []
    mode = FakeTensorMode(allow_non_fake_inputs=False)
    fake = tree_map_only(Tensor, mode.from_tensor, given)
    for arguments, where in ((given, torch.no_grad()), (fake, mode)):
        with where, pytest.raises(Exception) as caught:  # noqa: PT011
            op(*arguments)
        assert type(caught.value) is error, caught.value
        said.append(str(caught.value))
    assert re.match(message, said[0]), said[0]
    assert said[0] == said[1]
    assert "\n" not in said[0]
