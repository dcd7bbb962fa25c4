"""Tables for pages of documentation."""

from collections.abc import Sequence

__all__ = ["markdown_table"]


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = True) -> str:
    """Lines, the first column to the left and the others to the right, or to the left too if they are not numbers."""
    others = "---:" if numbers else "---"
    lines = [headings, ["---"] + [others] * (len(headings) - 1), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)
