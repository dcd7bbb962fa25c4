"""Specs: defaults, their text, what is refused."""

from __future__ import annotations

import pytest
from specs import ALL

from metis_compile.numerics import QuantSpec


@pytest.mark.parametrize("spec", ALL, ids=str)
def test_text_round_trips(spec: QuantSpec) -> None:
    assert QuantSpec.parse(str(spec)) == spec
    assert hash(QuantSpec.parse(str(spec))) == hash(spec)


def test_texts_are_distinct() -> None:
    assert len({str(spec) for spec in ALL}) == len(ALL)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("nvfp4",), "nvfp4 1x16 nearest"),
        (("nvfp4", "16x16", "stochastic"), "nvfp4 16x16 stochastic round_up"),
        (("nvfp4", None, "nearest", "none"), "nvfp4 1x16 nearest"),
        (("mxfp4",), "mxfp4 1x32 nearest floor"),
        (("mxfp8", None, "stochastic", "none", "even"), "mxfp8 1x32 stochastic none even"),
        (("nvfp4", None, "nearest", None, None, "mae"), "nvfp4 1x16 nearest 4/6-mae"),
        (("nvfp4", None, "stochastic", None, None, "expected"), "nvfp4 1x16 stochastic round_up 4/6-expected"),
        (("nvfp4", None, "eden"), "nvfp4 1x16 eden"),
        (("nvfp4", "16x16", "eden", "none"), "nvfp4 16x16 eden"),
        (("fp8",), "fp8 tensor nearest"),
        (("fp8_e5m2", "128x128", "stochastic"), "fp8_e5m2 128x128 stochastic round_up"),
    ],
)
def test_defaults(arguments: tuple[str, ...], text: str) -> None:
    assert str(QuantSpec.make(*arguments)) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nvfp4", "a spec must read"),
        ("nvfp4 1x16 nearest floor", "scale_mode must be None for nvfp4"),
        ("nvfp4 1x16 stochastic", "guard of stochastic nvfp4 must be one of"),
        ("mxfp4 1x32 nearest", "scale_mode of mxfp4 must be one of 'floor', 'rceil', 'even', got None"),
        ("mxfp4 1x32 stochastic 17/16 floor", "must be one of 'round_up', 'none', got '17/16'"),
        ("mxfp4 1x32 nearest floor even", "got also 'even'"),
        ("nvfp4 1x16 nearest 4/6-mes", "did you mean 'mse'"),
        ("nvfp4 1x16 nearest 4/6-mse none", "scale_mode must be None for nvfp4|got also"),
        ("mxfp4 1x32 nearest floor 4/6-mse", "select must be None for mxfp4"),
        ("mxfp4 1x32 eden floor", "rounding of mxfp4 must be one of 'nearest', 'stochastic', got 'eden'"),
        ("nvfp4 1x16 eden round_up", "scale_mode must be None for nvfp4"),
        ("nvfp4 1x16 eden 4/6-mse", "select must be None when rounding is 'eden', got 'mse'"),
        ("mxfp6 1x32 nearest floor", "did you mean 'mxfp"),
    ],
)
def test_texts_that_are_no_spec(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QuantSpec.parse(text)


@pytest.mark.parametrize(
    ("arguments", "bits"),
    [
        (("nvfp4",), 4.5),
        (("nvfp4", "16x16"), 4 + 8 / 256),
        (("mxfp4",), 4.25),
        (("mxfp8",), 8.25),
        (("mxfp8_e5m2",), 8.25),
        (("fp8",), 8.0),
        (("fp8", "row"), 8.0),
        (("fp8", "1x128"), 8.25),
        (("fp8", "128x128"), 8 + 32 / 16384),
    ],
)
def test_bits_per_element(arguments: tuple[str, ...], bits: float) -> None:
    assert QuantSpec.make(*arguments).bits_per_element == bits
