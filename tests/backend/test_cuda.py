"""The same training steps on a GPU: as users run them, and with each kind of choice forced, so that none hides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from by_hand import BFLOAT16_DRAWS, SAME_DRAWS, assert_same
from training_step import LAYERS, PRESETS, compiled_step, gemm_calls, reference_step, start, start_mixture

from metis_compile.compat import autotune

pytestmark = pytest.mark.gpu
CHOICES: dict[str, Callable[[list[Any]], list[Any]]] = {
    "autotuned": lambda choices: choices,
    "templates": lambda choices: choices[:-1],
    "plain": lambda choices: choices[-1:],
}
EVEN, ODD = (320, 256, 192, 128), (257, 163, 97, 51)  # tokens, and the model's three widths


@pytest.mark.parametrize(("choice", "shape"), [("autotuned", EVEN), ("templates", ODD), ("plain", ODD)])
@pytest.mark.parametrize("preset", PRESETS)
def test_a_training_step(preset: str, choice: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    from metis_compile.kernels.gemm import lowering

    def chosen(name: str, choices: list[Any], nodes: list[Any], layout: Any) -> Any:
        return autotune(name, CHOICES[choice](choices), nodes, layout)

    monkeypatch.setattr(lowering, "autotune", chosen)
    model, x = (t.cuda() for t in start(*shape))
    actual, codes, _ = compiled_step(model, x, preset)
    templates, plain = gemm_calls(codes)
    assert templates + plain == 3 * LAYERS
    if choice != "autotuned":
        assert (templates if choice == "plain" else plain) == 0
    assert_same(actual, reference_step(model, x, preset), SAME_DRAWS)


def test_bfloat16_in_a_batch_of_one_sequence() -> None:
    model, x = (t.cuda().bfloat16() for t in start(*ODD))
    actual, codes, _ = compiled_step(model, x[None], "nvfp4")
    assert sum(gemm_calls(codes)) == 3 * LAYERS
    assert_same(actual, reference_step(model, x[None], "nvfp4"), BFLOAT16_DRAWS)


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("preset", ["nvfp4", "best", "mxfp8", "fp8"])
def test_experts(preset: str, choice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16, by torch's own grouped product; an expert without tokens, and tokens of none."""
    from metis_compile.kernels.gemm import lowering

    def chosen(name: str, choices: list[Any], nodes: list[Any], layout: Any, **how: Any) -> Any:
        return autotune(name, CHOICES[choice](choices), nodes, layout, **how)

    monkeypatch.setattr(lowering, "autotune", chosen)
    model, x = (t.cuda().bfloat16() for t in start_mixture([71, 71, 200, 313], *EVEN))
    actual, codes, _ = compiled_step(model, x, preset)
    assert sum(gemm_calls(codes)) == 3 * LAYERS
    assert_same({"y": actual["y"]}, {"y": reference_step(model, x, preset)["y"]}, BFLOAT16_DRAWS)
