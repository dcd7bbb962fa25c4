"""``metis compare --gemm`` from a tiny model to its files."""

import json
from dataclasses import replace
from io import StringIO
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import metis_compile
from metis_compile.compare import gemm
from metis_compile.compare.gemm import PRODUCTS, GemmError, Snapshot, snapshots
from metis_compile.compare.gemm_plot import figure_of
from metis_compile.compare.gemm_report import Sheet, compare_gemms, sheets, write
from metis_compile.compare.gemm_summary import kind_of
from metis_compile.train.errors import TrainError
from metis_compile.train.settings import Settings

QUIET = Console(file=StringIO())
SIZES = {"steps": 3, "width": 32, "layers": 2}


def off(value: torch.Tensor, exact: torch.Tensor) -> float:
    return float((value - exact).norm() / exact.norm())


def by_hand(tensors: Snapshot, format: str) -> dict[str, dict[str, float]]:
    """By product and what is quantized, as the JSON has them."""

    def q(x: torch.Tensor, axis: int) -> torch.Tensor:
        return metis_compile.quantize(x, format, axis).dequantize()

    x, w, g = tensors.activation, tensors.weight, tensors.gradient
    y, dx, dw = x @ w.T, g @ w, g.T @ x
    return {
        "fprop": {
            "all": off(q(x, 1) @ q(w, 1).T, y),
            "activation": off(q(x, 1) @ w.T, y),
            "weight": off(x @ q(w, 1).T, y),
        },
        "dgrad": {
            "all": off(q(g, 1) @ q(w, 0), dx),
            "gradient": off(q(g, 1) @ w, dx),
            "weight": off(g @ q(w, 0), dx),
        },
        "wgrad": {
            "all": off(q(g, 0).T @ q(x, 0), dw),
            "gradient": off(q(g, 0).T @ x, dw),
            "activation": off(g.T @ q(x, 0), dw),
        },
    }


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The settings, the tables and the files of one comparison."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "text.txt").write_text("all work and no play makes jack a dull boy. " * 200)
    tiny = Settings(text=str(folder / "text.txt"), heads=2, context=16, batch=2, **SIZES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gemm, "FULL_PRECISION", replace(gemm.FULL_PRECISION, backend="eager"))
        yield tiny, *compare_gemms(["mxfp8"], tiny, folder / "out", QUIET)


def cell(sheet: Sheet, row: str, column: str) -> str:
    (found,) = [cells for cells in sheet.cells if cells[0] == row]
    return found[list(sheet.headings).index(column)]


def test_every_number_is_that_of_the_tensors(report: Any) -> None:
    tiny, made, files = report
    _, (_, now) = snapshots(tiny)  # the same seed, so the same tensors
    names = [name for name in now if name != "lm_head"]
    expected = {name: by_hand(now[name], "mxfp8") for name in names}

    numbers = json.loads(files["report"].read_text())
    found = numbers["errors"]["mxfp8"]
    assert set(found) == set(names)  # all linears but the head
    for name in names:
        for product, errors in expected[name].items():
            assert found[name][product] == pytest.approx(errors, rel=1e-3), (name, product)

    products, operands, layers = made
    errors = [expected[name]["wgrad"]["all"] for name in names]
    mean = prod(errors) ** (1 / len(errors))
    assert numbers["mean_errors"]["mxfp8"]["wgrad"]["all"] == pytest.approx(mean, rel=1e-3)
    assert float(cell(products, "`mxfp8`", "wgrad")) == pytest.approx(mean, abs=1e-4)
    errors = [expected[name]["dgrad"]["gradient"] for name in names]
    mean = prod(errors) ** (1 / len(errors))
    assert numbers["mean_errors"]["mxfp8"]["dgrad"]["gradient"] == pytest.approx(mean, rel=1e-3)
    assert float(cell(operands, "`mxfp8`", "dgrad, gradient")) == pytest.approx(mean, abs=1e-4)
    errors = [expected[f"blocks.{i}.attn.v"]["fprop"]["all"] for i in (0, 1)]
    assert float(cell(layers, "attn.v, fprop", "`mxfp8`")) == pytest.approx(prod(errors) ** 0.5, abs=1e-4)
    assert len(layers.cells) == 6 * 3


def test_what_was_measured_is_said(report: Any) -> None:
    _, made, files = report
    numbers = json.loads(files["report"].read_text())
    assert numbers["settings"]["steps"] == 3
    assert numbers["policies"] == {"mxfp8": metis_compile.Policy.load("mxfp8").digest()}
    assert {"date", "processor", "torch"} <= set(numbers["machine"])
    assert "commit" in numbers
    assert files["plot"].read_bytes().startswith(b"\x89PNG")
    for sheet in made:
        text = files[f"{sheet.name}, Markdown"].read_text()
        assert text == sheet.markdown()
        assert len(text.splitlines()) == 2 + len(sheet.cells)


def error(
    policy: str, product: str, both: float, left: float | None, right: float | None, module: str = "blocks.0.up"
) -> GemmError:
    roles = [role for role, _ in PRODUCTS[product]]
    return GemmError(
        policy=policy,
        module=module,
        gemm=product,
        error=both,
        left_error=left,
        right_error=right,
        left=roles[0],
        right=roles[1],
    )


ERRORS = {
    "nvfp4": [error("nvfp4", "fprop", 0.2, 0.1, 0.15), error("nvfp4", "wgrad", 0.4, 0.3, 0.2)],
    "mine": [error("mine", "fprop", 0.1, None, 0.1)],
}


def test_ratios_are_to_nvfp4_and_what_is_not_there_is_left_out() -> None:
    products, operands, layers = sheets(ERRORS)
    assert products.cells == [
        ["`nvfp4`", "0.2000", "1.00", "-", "-", "0.4000", "1.00"],
        ["`mine`", "0.1000", "0.50", "-", "-", "-", "-"],
    ]
    assert operands.cells[1] == ["`mine`", "-", "0.1000", "-", "-", "-", "-"]
    assert layers.cells[0] == ["up, fprop", "0.2000", "0.1000"]


def test_ratios_are_over_the_layers_that_both_quantize() -> None:
    last = error("nvfp4", "fprop", 0.8, 0.1, 0.15, "blocks.1.up")
    products, *_ = sheets({"nvfp4": [*ERRORS["nvfp4"], last], "mine": ERRORS["mine"]})
    assert products.cells[0][1:3] == ["0.4000", "1.00"]
    assert products.cells[1][1:3] == ["0.1000", "0.50"]


def test_the_plot_has_a_panel_for_each_product() -> None:
    panels = figure_of(ERRORS).axes
    assert [axes.get_xlabel() for axes in panels] == [f"relative error of {product}" for product in PRODUCTS]
    assert drawn(panels[0]) == {
        ("a layer", 0.2, 0),
        ("mean", 0.2, 0),
        ("mean, activation alone", 0.1, 0),
        ("mean, weight alone", 0.15, 0),
        ("a layer", 0.1, 1),
        ("mean", 0.1, 1),
        ("mean, weight alone", 0.1, 1),
    }
    assert drawn(panels[1]) == set()
    assert drawn(panels[2]) == {
        ("a layer", 0.4, 0),
        ("mean", 0.4, 0),
        ("mean, gradient alone", 0.3, 0),
        ("mean, activation alone", 0.2, 0),
    }


def drawn(axes: Any) -> set[tuple[str, float, int]]:
    """What each point is said to be, its error, and its policy's place."""
    points = [(line, x, y) for line in axes.lines for x, y in zip(*line.get_data(), strict=True)]
    return {(line.get_label(), round(float(x), 6), int(y)) for line, x, y in points}


@pytest.mark.parametrize(
    ("module", "kind"),
    [("blocks.0.attn.q", "attn.q"), ("model.layers.11.mlp.up", "mlp.up"), ("up", "up"), ("heads.0", "heads.0")],
)
def test_kinds_are_what_blocks_have_in_common(module: str, kind: str) -> None:
    assert kind_of(module) == kind


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"two policies have the name 'nvfp4': rename one of the files"):
        compare_gemms(["nvfp4", "elsewhere/nvfp4.toml"], Settings(), tmp_path, QUIET)
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainError, match=r"cannot write .*file"):
        write(ERRORS, {}, tmp_path / "file")
