"""Finding and reading policy files: from a name, a path or a text to TOML tables that know their lines."""

import os
import re
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from metis_compile.policy.errors import PolicyError, show, unknown_key, unknown_name
from metis_compile.policy.limits import LONGEST, MOST_FILES, check_text, check_values, too_long
from metis_compile.policy.presets import preset_path, presets
from metis_compile.policy.toml_positions import Path as KeyPath
from metis_compile.policy.toml_positions import key_lines, line_of
from metis_compile.spelling import nearest_name

TOP_KEYS = ("extends", "rules_first", "recipe", "rule", "stage")


@dataclass(frozen=True, kw_only=True)
class Document:
    """One policy file as written, and the one it extends."""

    name: str  # what reports call it: a file's name, such as "run.toml"
    file: str  # what errors call it: its path
    data: dict[str, Any]
    lines: dict[KeyPath, int]
    parent: "Document | None"
    trust: bool  # whether it may name code, which is then imported

    @property
    def rules_first(self) -> bool:
        """Whether its rules come before those of a file that extends it."""
        return bool(self.data.get("rules_first", False))

    def error(self, error: PolicyError, path: KeyPath, key: str) -> PolicyError:
        """``error`` with this file, the line of ``path``, and ``key`` as the reader's name for the place."""
        return error.at(file=self.file, line=line_of(self.lines, path), key=key)


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """What the files that extend one another have in common."""

    trust: bool
    chain: tuple[Path, ...] = ()  # the files so far
    length: int = 0  # their bytes

    def with_file(self, path: Path, length: int) -> "_Reading":
        return _Reading(trust=self.trust, chain=(*self.chain, path), length=self.length + length)


def read_reference(reference: str | os.PathLike[str], *, folder: Path | None = None, trust: bool) -> Document:
    """Reads the preset or file that ``reference`` names, relative to ``folder``. Raises PolicyError."""
    return _read_file(_locate(reference, folder or Path()), _Reading(trust=trust))


def read_text(text: str, name: str, folder: Path, *, trust: bool) -> Document:
    """Reads a policy given as text; paths in it are relative to ``folder``. Raises PolicyError."""
    if not isinstance(text, str):
        raise PolicyError(f"a policy must be given as text, got {show(text)}", file=name, value=text)
    try:
        length = len(text.encode())
    except UnicodeEncodeError as error:
        raise PolicyError(f"is not text that UTF-8 can hold: {error.reason}", file=name) from None
    return _parse(text, name, name, folder, _Reading(trust=trust, length=length))


def _locate(reference: str | os.PathLike[str], folder: Path) -> Path:
    """The file that a preset's name or a path stands for; a preset's name goes before a file's."""
    if not isinstance(reference, (str, os.PathLike)):
        raise PolicyError(f"must be a preset's name or a path, got {show(reference)}", value=reference)
    known = presets()
    if isinstance(reference, str) and reference in known:
        return preset_path(reference)
    text = os.fspath(reference)
    try:
        path = folder / Path(reference).expanduser()
        if path.is_file():
            return path
        is_folder = path.is_dir()
    except (OSError, RuntimeError, ValueError) as error:  # an over-long name, an unknown ~user, a null byte
        raise PolicyError(f"{show(text)} cannot be looked up: {error}", value=text, allowed=known) from None
    if isinstance(reference, str) and not text.endswith(".toml") and "/" not in text and os.sep not in text:
        raise unknown_name(text, known, of="a policy that is not a path")
    near = nearest_name(path.name, [file.name for file in path.parent.glob("*.toml")], cutoff=0.7)
    if near is None and path.stem in known:
        near = path.stem
    problem = f"{show(text)} is {'a folder' if is_folder else 'not there'}; a policy must be a file, or one of "
    problem += ", ".join(show(name) for name in known) + (f"; did you mean {show(near)}?" if near else "")
    raise PolicyError(problem, value=text, allowed=known, nearest=near)


def _read_file(path: Path, reading: _Reading) -> Document:
    try:
        with path.open("rb") as file:
            raw = file.read(LONGEST + 1)
        text = raw.decode("utf-8-sig") if len(raw) <= LONGEST else ""
    except OSError as error:
        raise PolicyError(f"cannot be read: {error.strerror}", file=str(path), value=str(path)) from None
    except UnicodeDecodeError as error:
        raise PolicyError(
            f"is not UTF-8 text: {error.reason} at byte {error.start}", file=str(path), value=str(path)
        ) from None
    return _parse(text, path.name, str(path), path.parent, reading.with_file(path.resolve(), len(raw)))


def _parse(text: str, name: str, file: str, folder: Path, reading: _Reading) -> Document:
    if reading.length > LONGEST:
        raise too_long().at(file=file)
    try:
        check_text(text)
        data = tomllib.loads(text)
    except PolicyError as error:
        raise error.at(file=file) from None
    except tomllib.TOMLDecodeError as error:
        raise _syntax_error(error, text, file) from None
    here = Document(name=name, file=file, data=data, lines=key_lines(text), parent=None, trust=reading.trust)
    if mistake := check_values(data):
        place, wrong = mistake
        raise here.error(wrong, place, ".".join(map(str, place)))
    for key in data:
        if key not in TOP_KEYS:
            raise here.error(unknown_key("a policy", key, TOP_KEYS), (key,), key)
    if not isinstance(first := data.get("rules_first", False), bool):
        wrong = PolicyError(f"must be true or false, got {show(first)}", value=first, allowed=("true", "false"))
        raise here.error(wrong, ("rules_first",), "rules_first")
    if "extends" not in data:
        return here
    try:
        if len(reading.chain) >= MOST_FILES:
            raise PolicyError(f"more than {MOST_FILES} files extend one another", value=data["extends"])
        path = _locate(data["extends"], folder)
        if path.resolve() in reading.chain:
            names = " -> ".join(file.name for file in (*reading.chain[reading.chain.index(path.resolve()) :], path))
            raise PolicyError(f"extends in a circle: {names}", value=data["extends"])
    except PolicyError as error:
        raise here.error(error, ("extends",), "extends") from None
    return replace(here, parent=_read_file(path, reading))


def _syntax_error(error: tomllib.TOMLDecodeError, text: str, file: str) -> PolicyError:
    said = str(error)
    place = re.search(r" \(at (?:line (\d+), column (\d+)|end of document)\)$", said)
    lines = text.split("\n")
    line = int(place[1]) if place and place[1] else len(lines)
    shown = lines[line - 1].strip() if line <= len(lines) else ""
    if place:
        said = said[: place.start()] + (f" at column {place[2]}" if place[2] else " at the end of the file")
    hint = ""
    if len(shown) <= 200 and (bare := re.fullmatch(r"([\w.-]+)\s*=\s*([A-Za-z*][^\"'#]*?)\s*(?:#.*)?", shown)):
        hint = f'; a text goes in quotes: {bare[1]} = "{bare[2]}"'
    return PolicyError(f"is not valid TOML: {said} in {show(shown)}{hint}", file=file, line=line, value=shown)
