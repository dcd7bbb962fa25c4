"""Tables for pages of documentation."""

from collections.abc import Sequence

__all__ = ["markdown_table"]


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lines, the first column to the left and the others to the right."""
    lines = [headings, ["---"] + ["---:"] * (len(headings) - 1), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)
