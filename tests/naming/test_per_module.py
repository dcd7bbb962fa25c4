from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

from metis_compile import Policy
from metis_compile.naming.per_module import PerModule


def test_a_block_that_nothing_names_runs_as_the_first_and_says_so() -> None:
    several = object.__new__(PerModule)
    several.compiled = [lambda weight: "first", lambda weight: "second"]
    several.kind, several.policy, several.first = nn.Bilinear, Policy.load("nvidia"), "blocks.0"
    several.position, several.which = 0, WeakIdKeyDictionary()
    known, other = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    several.which[known] = 1
    assert several(known) == "second"
    with pytest.warns(UserWarning, match="nothing tells which Bilinear runs this graph.*it runs as blocks.0 does"):
        assert several(other) == "first"
