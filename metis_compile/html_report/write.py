"""A page as HTML, and into a file."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from metis_compile import __version__
from metis_compile.html_report.blocks import Page
from metis_compile.html_report.draw import drawings
from metis_compile.html_report.errors import ReportError
from metis_compile.measure.folder import check_folder, writing

__all__ = ["check", "html", "write"]

TEMPLATE = "page.html.jinja"


def html(page: Page) -> str:
    """The whole file. Raises ReportError without jinja2 or matplotlib."""
    _check_libraries()
    return str(_template().render(page=page))


def write(page: Page, path: Path) -> None:
    """Raises ReportError where the file can't be written."""
    text = html(page)
    with writing(path, ReportError):
        path.write_text(text, encoding="utf-8")


def check(path: Path) -> None:
    """Raises ReportError where `write` would: call it before what is to be reported runs."""
    _check_libraries()
    if path.is_dir():
        raise ReportError(f"cannot write {path}: it is a folder; name a file in it, such as {path / 'report.html'}")
    there = path.exists()
    check_folder(path.parent, ReportError)
    with writing(path, ReportError), path.open("ab"):
        pass
    if not there:
        path.unlink()


def _check_libraries() -> None:
    try:
        import jinja2  # noqa: F401
        import matplotlib.ticker  # noqa: F401
    except ImportError as error:
        raise ReportError(f"a report needs {error.name}: pip install 'metis-compile[train]'") from None


@cache
def _template() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("metis_compile.html_report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["drawings"] = lambda chart: [(name, Markup(svg)) for name, svg in drawings(chart)]
    environment.globals["version"] = __version__
    return environment.get_template(TEMPLATE)
