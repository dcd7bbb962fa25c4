import pytest

from metis_compile.bench.errors import BenchError
from metis_compile.bench.shapes import sizes_of, spec_of


def test_sizes() -> None:
    assert sizes_of("8192x4096", ("ROWS", "COLUMNS")) == [8192, 4096]
    assert sizes_of("4x5x6", ("M", "N", "K")) == [4, 5, 6]


@pytest.mark.parametrize("text", ["8192", "8192x", "8192x0", "8192x-1", "8192x4096x2", "axb", ""])
def test_what_is_no_shape(text: str) -> None:
    with pytest.raises(BenchError, match=f"a shape must be ROWSxCOLUMNS in numbers above 0, got '{text}'"):
        sizes_of(text, ("ROWS", "COLUMNS"))


def test_formats_by_name_and_in_full() -> None:
    assert str(spec_of("nvfp4")) == "nvfp4 1x16 nearest"
    assert str(spec_of("nvfp4 16x16 stochastic 17/16")) == "nvfp4 16x16 stochastic 17/16"
    with pytest.raises(BenchError, match="nvfp5"):
        spec_of("nvfp5")
    with pytest.raises(BenchError, match="1x17"):
        spec_of("nvfp4 1x17 nearest")
