"""Where a page can't be written: one line, before anything runs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from metis_compile.html_report import Page, ReportError, check, write


def test_a_page_is_written_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "new" / "page.html"
    check(path)
    assert list(path.parent.iterdir()) == []
    write(Page(title="naïve", lead=""), path)
    assert "<h1>naïve</h1>" in path.read_text(encoding="utf-8")


def test_what_is_there_stays_until_it_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("before")
    check(path)
    assert path.read_text() == "before"


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"it is a folder; name a file in it, such as .*report\.html$"):
        check(tmp_path)


def test_a_folder_that_can_not_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ReportError, match="cannot make the folder"):
        check(tmp_path / "file" / "page.html")


@pytest.mark.parametrize("missing", ["jinja2", "matplotlib.ticker"])
def test_a_library_that_is_not_there(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ReportError, match=rf"a report needs {missing}: pip install 'metis-compile\[train\]'"):
        check(tmp_path / "page.html")
