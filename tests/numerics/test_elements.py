"""Rounding to element grids and their codes, against ml_dtypes and gfloat."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest
import torch
from gfloat import Domain, FormatInfo, RoundMode, decode_float, encode_float, round_float
from gfloat.formats import format_info_ocp_e2m1, format_info_ocp_e4m3, format_info_ocp_e5m2

from metis_compile.numerics import QuantSpec, decode, encode
from metis_compile.numerics.elements import element_codes, element_values, round_magnitude_up, round_to_element
from metis_compile.numerics.number_types import ELEMENTS

Cast = Callable[[np.ndarray], np.ndarray]

E1M2 = FormatInfo(
    "e1m2", 4, 3, bias=0, is_signed=True, domain=Domain.Finite, has_nz=True, num_high_nans=0, has_subnormals=True,
    is_twos_complement=False,
)  # fmt: skip


def as_stored(element_type: type) -> Cast:
    return lambda x: x.astype(element_type).astype(np.float32)


# ml_dtypes has no E1M2, whose values are the multiples of a half.
TYPES: dict[str, tuple[Cast, FormatInfo]] = {
    "e2m1": (as_stored(ml_dtypes.float4_e2m1fn), format_info_ocp_e2m1),
    "e1m2": (lambda x: np.rint(x * np.float32(2)) / np.float32(2), E1M2),
    "e4m3": (as_stored(ml_dtypes.float8_e4m3fn), format_info_ocp_e4m3),
    "e5m2": (as_stored(ml_dtypes.float8_e5m2), format_info_ocp_e5m2),
}
elements = pytest.mark.parametrize("name", TYPES)


def magnitudes(name: str) -> np.ndarray:
    """Every finite magnitude of the grid, ascending, float32: decoded by gfloat."""
    info = TYPES[name][1]
    values = [decode_float(info, code).fval for code in range(2 ** (info.bits - 1))]
    return np.array([v for v in values if np.isfinite(v)], np.float32)


def near_decisions(name: str) -> np.ndarray:
    """Grid values, the midpoints between them and their fp32 neighbours, with both signs, and what saturates."""
    grid = magnitudes(name)
    points = np.concatenate([grid, (grid[1:] + grid[:-1]) / 2, [grid[1] / 4, 2.0**-149, grid[-1] * 1.03, 3e38]])
    points = points.astype(np.float32)
    points = np.concatenate([points, np.nextafter(points, np.float32(np.inf)), np.nextafter(points, np.float32(0))])
    return np.concatenate([points, -points])


@elements
def test_nearest_matches_both_libraries_near_every_decision(name: str) -> None:
    cast, info = TYPES[name]
    x = near_decisions(name)
    got = round_to_element(torch.from_numpy(x), ELEMENTS[name]).numpy()
    largest = ELEMENTS[name].max
    assert got.tobytes() == cast(np.clip(x, -largest, largest)).tobytes()
    want = [round_float(info, float(v), RoundMode.TiesToEven, sat=True) for v in x]
    assert got.tobytes() == np.array(want, np.float32).tobytes()


@elements
def test_nearest_matches_ml_dtypes_on_random_bits(name: str) -> None:
    x = np.random.default_rng(0).integers(0, 2**32, 2**20, np.uint32).view(np.float32)
    got = round_to_element(torch.from_numpy(x), ELEMENTS[name]).numpy()
    finite = np.isfinite(x)
    want = TYPES[name][0](np.clip(x[finite], -ELEMENTS[name].max, ELEMENTS[name].max))
    assert got[finite].tobytes() == want.tobytes()
    assert np.isnan(got[np.isnan(x)]).all()


@elements
def test_up_is_the_least_grid_value_that_is_not_below(name: str) -> None:
    x = np.abs(near_decisions(name))
    x = x[x <= ELEMENTS[name].max]
    grid = magnitudes(name)
    got = round_magnitude_up(torch.from_numpy(x), ELEMENTS[name]).numpy()
    np.testing.assert_array_equal(got, grid[np.searchsorted(grid, x, side="left")])


@elements
@pytest.mark.parametrize("bits", [3, 24])
def test_stochastic_matches_gfloat_with_given_bits(name: str, bits: int) -> None:
    info = TYPES[name][1]
    rng = np.random.default_rng(0)
    grid = magnitudes(name)
    between = (grid[:-1, None] + np.diff(grid)[:, None] * rng.random((len(grid) - 1, 8))).astype(np.float32)
    x = np.concatenate([between.ravel(), -between.ravel(), near_decisions(name)])
    drawn = rng.integers(0, 2**bits, x.size)
    drawn[::5] = 2**bits - 1
    drawn[1::5] = 0
    noise = torch.from_numpy((drawn / 2**bits).astype(np.float32))
    got = round_to_element(torch.from_numpy(x), ELEMENTS[name], noise).numpy()
    # Saturate first, as quantization does: what is beyond the grid is not drawn.
    clamped = np.clip(x, -ELEMENTS[name].max, ELEMENTS[name].max).astype(np.float64)
    fastest = RoundMode.StochasticFastest
    want = [round_float(info, float(v), fastest, True, int(b), bits) for v, b in zip(clamped, drawn, strict=True)]
    assert got.tobytes() == np.array(want, np.float32).tobytes()


@elements
def test_grid_values_are_never_moved_by_noise(name: str) -> None:
    grid = torch.from_numpy(magnitudes(name))
    for u in (0.0, 0.5, 1 - 2.0**-24):
        assert torch.equal(round_to_element(grid, ELEMENTS[name], torch.full_like(grid, u)), grid)


def test_e1m2_is_evenly_spaced() -> None:
    assert magnitudes("e1m2").tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5]
    codes = torch.arange(16, dtype=torch.int32)
    values = element_values(codes, ELEMENTS["e1m2"])
    assert values.numpy().tobytes() == np.array([decode_float(E1M2, c).fval for c in range(16)], "f4").tobytes()
    assert element_codes(values, ELEMENTS["e1m2"]).tolist() == list(range(16))
    assert element_codes(torch.tensor([torch.nan, -torch.nan]), ELEMENTS["e1m2"]).tolist() == [0, 0]


def test_e2m1_codes_are_those_of_both_libraries() -> None:
    codes = np.arange(16, dtype=np.uint8)
    values = codes.view(ml_dtypes.float4_e2m1fn).astype(np.float32)
    assert (
        values.tobytes() == np.array([decode_float(format_info_ocp_e2m1, int(c)).fval for c in codes], "f4").tobytes()
    )
    assert element_codes(torch.from_numpy(values), ELEMENTS["e2m1"]).tolist() == list(range(16))
    assert element_values(torch.arange(16, dtype=torch.int32), ELEMENTS["e2m1"]).numpy().tobytes() == values.tobytes()
    assert element_codes(torch.tensor([torch.nan, -torch.nan]), ELEMENTS["e2m1"]).tolist() == [0, 0]


@pytest.mark.parametrize("format", ["mxfp8", "mxfp8_e5m2"])
def test_every_fp8_code_survives_decoding_and_encoding(format: str) -> None:
    spec = QuantSpec.make(format)
    info = TYPES[spec.fmt.element][1]
    codes = torch.tensor([c for c in range(256) if np.isfinite(decode_float(info, c).fval)], dtype=torch.uint8)
    codes = torch.cat([codes, codes.flip(0)])
    # One block per code, and the largest element beside it, which makes the scale 1.
    pairs = torch.stack([codes, torch.full_like(codes, encode_float(info, spec.element.max))], 1)
    ones = torch.full((len(codes), 1), 127, dtype=torch.uint8).view(torch.float8_e8m0fnu)
    values = decode([pairs, ones], spec, 1, 2)
    assert values[:, 0].tolist() == [decode_float(info, int(c)).fval for c in codes]
    again = encode(values, spec, 1)
    assert torch.equal(again[0], pairs)
    assert torch.equal(again[1].view(torch.uint8), ones.view(torch.uint8))
