"""A part of a graph run operator by operator: what is wanted, nothing more, and nothing that writes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx

from metis_compile.monitoring.half import Half, Wanted
from metis_compile.ops.state import LOAD, STORE, handle_of

aten = torch.ops.aten
RAN: list[str] = []
CPU = torch.device("cpu")


class Kept:
    """What lives across steps of one graph."""

    def __init__(self) -> None:
        self.tensor, self.stored = torch.arange(2.0), 0

    def load(self, site: str, part: str, shape: Any, device: torch.device) -> torch.Tensor:
        return self.tensor

    def store(self, site: str, part: str, value: torch.Tensor) -> None:
        self.stored += 1


def noted(x: torch.Tensor, name: str) -> torch.Tensor:
    RAN.append(name)
    return x + 1


def graph_of(build: Any) -> Half:
    graph = fx.Graph()
    graph.output(build(graph))
    return Half(fx.GraphModule({}, graph), cpu_kernels=False)


def chain(graph: fx.Graph) -> tuple[fx.Node, ...]:
    """x -> a -> b -> c, and d of x"""
    x = graph.placeholder("x")
    a = graph.create_node("call_function", noted, (x, "a"), name="a")
    b = graph.create_node("call_function", noted, (a, "b"), name="b")
    c = graph.create_node("call_function", noted, (b, "c"), name="c")
    d = graph.create_node("call_function", noted, (x, "d"), name="d")
    return c, d


def wanted(names: set[str], into: dict[str, Any]) -> Wanted:
    return Wanted(names=frozenset(names), visit=lambda values: into.update({n: values[n] for n in names}))


def test_only_what_is_wanted_is_run() -> None:
    RAN.clear()
    found: dict[str, Any] = {}
    half = graph_of(chain)
    half.run({"x": torch.zeros(())}, [wanted({"b"}, found)])
    assert RAN == ["a", "b"]
    assert float(found["b"]) == 2
    assert (half.inputs, half.outputs) == (["x"], ["c", "d"])


def test_what_is_known_is_not_run_again() -> None:
    RAN.clear()
    found: dict[str, Any] = {}
    graph_of(chain).run({"a": torch.tensor(10.0)}, [wanted({"b"}, found), wanted({"a"}, found)])
    assert RAN == ["b"]
    assert (float(found["b"]), float(found["a"])) == (11, 10)


def test_values_are_visited_at_once_and_freed() -> None:
    half = graph_of(chain)
    seen: list[list[str]] = []
    visits = [Wanted(names=frozenset({n}), visit=lambda values: seen.append(sorted(values))) for n in ("a", "c")]
    half.run({"x": torch.zeros(())}, visits)
    assert seen == [["a", "x"], ["b", "c", "x"]]


def test_nothing_that_writes_is_run() -> None:
    def build(graph: fx.Graph) -> tuple[fx.Node, ...]:
        state = graph.placeholder("state")
        read = graph.create_node("call_function", LOAD, (state, "up.weight", "gradient", [2], CPU), name="read")
        graph.create_node("call_function", STORE, (state, read, "up.weight", "gradient"), name="write")
        changed = graph.create_node("call_function", aten.add_.Tensor, (state, 1), name="changed")
        return read, changed

    half, found = graph_of(build), {}
    kept = Kept()
    state = handle_of(kept)
    half.run({"state": state}, [wanted({"read"}, found)])
    assert found["read"].tolist() == [0, 1]
    assert kept.stored == 0
    assert half.written == ["state"]
    known = {"state": state} | half.loaded({"state": state})
    kept.tensor += 5  # as the graph itself does
    half.run(known, [wanted({"read"}, found)])
    assert found["read"].tolist() == [0, 1], "what was there before the graph ran"
    with pytest.raises(RuntimeError, match="changed writes to its inputs"):
        half.run({"state": state}, [wanted({"changed"}, {})])


def test_an_input_that_is_not_known_is_named() -> None:
    with pytest.raises(RuntimeError, match="input x is not known"):
        graph_of(chain).run({}, [wanted({"a"}, {})])
