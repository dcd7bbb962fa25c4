"""Where in a TOML text each key stands, so that an error can name the line (tomllib tells values only)."""

import re
import tomllib
from bisect import bisect_left
from collections.abc import Callable

Path = tuple[str | int, ...]

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_BLANK = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_STRING = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}(?!")|\'\'\'.*?\'{3,5}(?!\')|"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\'',
    re.DOTALL,
)
_PLAIN_VALUE = re.compile(r"[^,\]}#\n]*")


def key_lines(text: str) -> dict[Path, int]:
    """The 1-based line of every table, key and array element of a text that tomllib has already accepted.

    Paths are as in the loaded data: ``("rule", 1, "module", 0)`` is the first glob of the second rule.
    """
    scan = _Scan(text)
    scan.document()
    return scan.lines


def line_of(lines: dict[Path, int], path: Path) -> int | None:
    """The line of ``path``, or of the closest thing around it that has one."""
    for end in range(len(path), 0, -1):
        if path[:end] in lines:
            return lines[path[:end]]
    return None


class _Scan:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.lines: dict[Path, int] = {}
        self._newlines = [found.start() for found in re.finditer("\n", text)]
        self._counts: dict[Path, int] = {}  # elements seen of each array of tables

    def document(self) -> None:
        table: Path = ()
        while self._skip(_BLANK) and self.at < len(self.text):
            if self.text[self.at] == "[":
                table = self._header()
            else:
                self._pair(table)

    def _header(self) -> Path:
        array = self.text.startswith("[[", self.at)
        start = self.at
        self.at += 2 if array else 1
        path = self._resolve(self._key())
        self._skip(_SPACE)
        self.at += 2 if array else 1
        if array:
            self._counts[path] = self._counts.get(path, -1) + 1
            path += (self._counts[path],)
        for end in range(1, len(path) + 1):
            self._mark(path[:end], start)  # a table around it counts from here if it has no header of its own
        return path

    def _resolve(self, key: Path) -> Path:
        """A header's key, with the current element put in after each array of tables on its way."""
        path: Path = ()
        for part in key[:-1]:
            path += (part,)
            if path in self._counts:
                path += (self._counts[path],)
        return (*path, *key[-1:])

    def _key(self) -> Path:
        parts: Path = ()
        while True:
            self._skip(_SPACE)
            if bare := _BARE_KEY.match(self.text, self.at):
                parts += (bare[0],)
                self.at = bare.end()
            else:
                quoted = self._take(_STRING)
                plain = "\\" not in quoted or quoted[0] == "'"
                parts += (quoted[1:-1] if plain else tomllib.loads(f"key = {quoted}")["key"],)
            self._skip(_SPACE)
            if not self.text.startswith(".", self.at):
                return parts
            self.at += 1

    def _pair(self, table: Path) -> None:
        start = self.at
        path = table
        for part in self._key():
            path += (part,)
            self._mark(path, start)
        self.at += 1  # the equals sign
        self._skip(_SPACE)
        self._value(path)

    def _value(self, path: Path) -> None:
        opening = self.text[self.at]
        if opening in "\"'":
            self._take(_STRING)
        elif opening == "[":
            self._collection("]", lambda index: self._element((*path, index)))
        elif opening == "{":
            self._collection("}", lambda _: self._pair(path))
        else:
            self._take(_PLAIN_VALUE)

    def _collection(self, closing: str, read_one: Callable[[int], None]) -> None:
        self.at += 1
        index = 0
        while self._skip(_BLANK) and self.text[self.at] != closing:
            read_one(index)
            index += 1
            self._skip(_BLANK)
            if self.text[self.at] == ",":
                self.at += 1
        self.at += 1

    def _element(self, path: Path) -> None:
        self._mark(path, self.at)
        self._value(path)

    def _mark(self, path: Path, at: int) -> None:
        self.lines.setdefault(path, bisect_left(self._newlines, at) + 1)

    def _skip(self, pattern: re.Pattern[str]) -> bool:
        self._take(pattern)
        return True

    def _take(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self.text, self.at)
        if found is None:
            raise AssertionError(f"the scan of a TOML text lost its way at character {self.at}")
        self.at = found.end()
        return found[0]
