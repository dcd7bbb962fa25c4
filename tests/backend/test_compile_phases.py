"""What backend="metis" adds to a compile has phases of its own, beside Dynamo's and Inductor's."""

from __future__ import annotations

import torch
from torch import nn

from metis_compile import capture
from metis_compile.compat import compile_phases

WHOLE = "_compile.compile_inner"  # Dynamo's own, around the backend
OURS = ("metis_backend", "metis_joint_pass", "metis_lowering_pass")


def seconds(name: str) -> float:
    return compile_phases().get(name, 0.0)


def test_each_of_our_phases_takes_some_of_the_compile() -> None:
    before = {name: seconds(name) for name in (*OURS, WHOLE)}
    with capture():  # past all caches
        torch.compile(nn.Linear(32, 32), backend="metis")(torch.randn(16, 32)).sum().backward()
    spent = {name: seconds(name) - start for name, start in before.items()}
    assert min(spent.values()) > 0
    assert spent["metis_backend"] + spent["metis_joint_pass"] < spent[WHOLE]  # lowering is in backward's compile too


def test_plain_inductor_has_none_of_them() -> None:
    before = [seconds(name) for name in OURS]
    torch.compile(nn.Linear(32, 32), backend="aot_eager")(torch.randn(16, 32)).sum().backward()
    assert [seconds(name) for name in OURS] == before
