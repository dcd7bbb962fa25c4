"""A page of HTML as html.parser sees it."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "link", "br", "hr", "img", "input", "path", "line", "circle"}  # SVG's are written <path ... />


class Parsed(HTMLParser):
    """Raises AssertionError for tags that do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.cells: list[list[str]] = []  # of all tables, row by row
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.texts.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())

    @property
    def sections(self) -> list[str]:
        return [str(attributes["id"]) for tag, attributes in self.tags if tag == "section"]

    def assert_needs_nothing(self) -> None:
        """No script, and nothing that is fetched or sent: all links lead to places of the page."""
        ids = {attributes.get("id") for _, attributes in self.tags}
        for tag, attributes in self.tags:
            assert tag not in ("script", "link", "img", "iframe", "object", "embed", "form", "base")
            for name, value in attributes.items():
                assert not name.startswith("on")
                assert name not in ("src", "srcset", "action", "data")
                if name.endswith("href"):
                    assert value is not None
                    assert value[0] == "#"
                    assert value[1:] in ids
