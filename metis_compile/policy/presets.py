"""The policies that ship with the package: TOML files in ``metis_compile/presets``, and the one that they extend."""

from pathlib import Path

_FOLDER = Path(__file__).resolve().parent.parent / "presets"
_BASE = "base"  # what they have in common; it quantizes nothing


def presets() -> list[str]:
    """The names that ``Policy.load`` and ``extends`` know without a file, in alphabetical order."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml") if path.stem != _BASE)


def preset_path(name: str) -> Path:
    """The file of the preset ``name``, which must be one of ``presets()``."""
    return _FOLDER / f"{name}.toml"
