import pytest

from metis_compile.policy import PolicyError
from metis_compile.policy.depth import canonical_blocks, in_blocks


@pytest.mark.parametrize(
    ("text", "count", "inside"),
    [
        ("first 2", 8, [0, 1]),
        ("last 4", 8, [4, 5, 6, 7]),
        ("3-5", 8, [3, 4, 5]),
        ("3", 8, [3]),
        ("0", 8, [0]),
        ("first 20", 3, [0, 1, 2]),
        ("last 20", 3, [0, 1, 2]),
        ("7-9", 8, [7]),
        ("8", 8, []),
        ("last 1", 1, [0]),
        ("last 15%", 4, [3]),
        ("last 15%", 20, [17, 18, 19]),
        ("last 15%", 21, [17, 18, 19, 20]),
        ("first 50%", 3, [0, 1]),
        ("first 100%", 3, [0, 1, 2]),
    ],
)
def test_blocks_by_place_in_depth(text: str, count: int, inside: list[int]) -> None:
    assert [index for index in range(count) if in_blocks(text, index, count)] == inside


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("last  4", "last 4"),
        (" first\t2 ", "first 2"),
        ("3 - 5", "3-5"),
        ("3-3", "3"),
        ("last 04", "last 4"),
        ("first 5 %", "first 5%"),
    ],
)
def test_one_way_of_writing_each_place(text: str, canonical: str) -> None:
    assert canonical_blocks(text) == canonical


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lsat 4", 'did you mean "last 2"?'),
        ("frist 2", 'did you mean "first 2"?'),
        ("middle 3", "is no place in depth"),
        ("5-3", "runs backwards"),
        ("last 0", "is no block at all"),
        ("last 0%", "is no block at all"),
        ("last 101%", "is more than all blocks"),
        ("15%", "is no place in depth"),
        ("first", "is no place in depth"),
        ("last 2-3", "is no place in depth"),
        ("-1", "is no place in depth"),
        ("", "is no place in depth"),
        ("last 4 blocks", "is no place in depth"),
    ],
)
def test_anything_else_is_an_error_that_shows_the_forms(text: str, said: str) -> None:
    with pytest.raises(PolicyError) as caught:
        canonical_blocks(text)
    assert said in str(caught.value)
    assert '"first 2", "last 4", "last 15%", "3-5", "3"' in str(caught.value)
    assert caught.value.value == text
