"""What `metis blame --json` printed, as heat maps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from metis_compile.html_report import HeatMap, ReportError, Table, blame_section, read_blame
from metis_compile.sensitivity.effects import Blame, Effect, Share


def blame() -> Blame:
    def share(module: str, gemm: str, operand: str, loss: float) -> Share:
        alone, without = Effect(loss=loss, gradient=0.1), Effect(loss=0.5 - loss, gradient=0.2)
        return Share(module=module, gemm=gemm, operand=operand, treatments=("nvfp4",), alone=alone, without=without)

    shares = (
        share("a", "wgrad", "gradient", 0.02),
        share("a", "fprop", "activation", 0.2),
        share("b", "fprop", "activation", -0.1),
    )
    return Blame(policy="nvfp4", batches=2, loss=2.0, total=Effect(loss=0.5, gradient=0.3), shares=shares)


def test_effects_are_where_they_belong(tmp_path: Path) -> None:
    path = tmp_path / "blame.json"
    path.write_text(json.dumps(blame().to_dict()))
    loss, gradient, table = blame_section(read_blame(path)).blocks
    assert isinstance(loss, HeatMap)
    assert isinstance(gradient, HeatMap)
    assert isinstance(table, Table)
    assert (loss.rows, loss.columns) == (["a", "b"], ["fprop activation", "wgrad gradient"])
    assert loss.values == [[pytest.approx(10.0), pytest.approx(1.0)], [pytest.approx(-5.0), None]]
    assert gradient.values == [[10.0, 10.0], [10.0, None]]
    assert [row[0] for row in table.rows] == ["a", "a", "b"]  # what costs most first
    assert table.rows[0][2:] == ("+0.2000", "+0.3000", "10.00 %")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"shares": [], "loss": 1}', '{"shares": [{}], "loss": 1}'])
def test_a_file_of_something_else(text: str, tmp_path: Path) -> None:
    path = tmp_path / "blame.json"
    path.write_text(text)
    with pytest.raises(ReportError, match=r"blame.json is not what metis blame --json prints"):
        read_blame(path)
