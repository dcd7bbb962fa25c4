"""Tests that use the fixture `triton_on_cpu` run in a pytest of their own, beside the one that was started.

Triton decides when it is imported whether kernels are interpreted, and Inductor remembers which devices it found: no
other test should meet either. The other pytest starts with the first test, runs ahead, and reports through a pipe; its
tests appear in the output as if they had run here. With TRITON_INTERPRET=1 in the environment they do (for a debugger).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
REPORTS = "METIS_TEST_REPORTS"  # the file descriptor that the other pytest reports to


class InterpretedTest(pytest.Item):
    """A test that the other pytest runs."""

    line: int | None = None

    def runtest(self) -> None:
        outcome, text, sections = self.config.stash[_PROCESS].result_of(self.nodeid)
        for title, content in sections:
            self.add_report_section("call", title, content)
        if outcome == "skipped":
            pytest.skip(text)
        if outcome == "failed":
            raise InterpretedFailure(text)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        return str(excinfo.value) if isinstance(excinfo.value, InterpretedFailure) else super().repr_failure(excinfo)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        return self.path, self.line, self.name


class InterpretedFailure(Exception):
    """What the other pytest printed about a test that failed."""


class InterpreterProcess:
    """The other pytest: started with the first test, and again with the rest if a test ends it."""

    def __init__(self, config: pytest.Config, tests: list[str]) -> None:
        self.config, self.left = config, tests
        self.results: dict[str, tuple[str, str, list[Any]]] = {}
        self.process: subprocess.Popen[bytes] | None = None
        self.reports: Any = None
        self.broken: str | None = None

    def start(self) -> None:
        reader, writer = os.pipe()
        self.log = tempfile.TemporaryFile()  # noqa: SIM115
        config = self.config
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={config.rootpath}"]
        command += [] if config.inipath is None else ["-c", str(config.inipath)]
        self.process = subprocess.Popen(
            [*command, *self.left],
            cwd=config.rootpath,
            env={**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", REPORTS: str(writer)},
            pass_fds=[writer],
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )
        os.close(writer)
        self.reports = os.fdopen(reader)

    def result_of(self, test: str) -> tuple[str, str, list[Any]]:
        running: str | None = None
        while test not in self.results and self.broken is None:
            if self.process is None:
                self.start()
            line = self.reports.readline()
            if line:
                name, *result = json.loads(line)
                running = None if result else name
                if result:
                    self.results[name] = tuple(result)
                    self.left.remove(name)
                continue
            message = self._ended()
            if running is None:
                self.broken = message
            else:
                self.results[running] = ("failed", message, [])
                self.left.remove(running)
        return self.results.get(test, ("failed", str(self.broken), []))

    def _ended(self) -> str:
        """What to say of the process, which has ended."""
        assert self.process is not None
        code = self.process.wait()
        self.log.seek(0)
        tail = self.log.read().decode(errors="replace")[-5000:]
        self.process = None
        return f"the pytest that interprets Triton ended with exit code {code}:\n{tail}"

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


_PROCESS = pytest.StashKey[InterpreterProcess]()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if INTERPRETING:
        return
    for i, item in enumerate(items):
        if "triton_on_cpu" in getattr(item, "fixturenames", ()):
            items[i] = InterpretedTest.from_parent(item.parent, name=item.name)
            items[i].line = item.reportinfo()[1]


def pytest_runtestloop(session: pytest.Session) -> None:
    tests = [item.nodeid for item in session.items if isinstance(item, InterpretedTest)]
    if tests and not session.config.option.collectonly:
        session.config.stash[_PROCESS] = InterpreterProcess(session.config, tests)
        session.config.stash[_PROCESS].start()


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _PROCESS in session.config.stash:
        session.config.stash[_PROCESS].stop()


# In the other pytest. A line of JSON when a test starts, [name], and ends, [name, outcome, text, sections].


class Reporter:
    """Reports to the pytest that started this one."""

    def __init__(self, descriptor: int) -> None:
        self.pipe = os.fdopen(descriptor, "w")
        self.worst: dict[str, pytest.TestReport] = {}

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._say(nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        worst = self.worst.setdefault(report.nodeid, report)
        if worst.passed or (report.failed and not worst.failed):
            worst = self.worst[report.nodeid] = report
        if report.when == "teardown":
            text = worst.longrepr[2] if isinstance(worst.longrepr, tuple) else worst.longreprtext
            self._say(report.nodeid, worst.outcome, text, worst.sections)

    def _say(self, *what: Any) -> None:
        print(json.dumps(what), file=self.pipe, flush=True)


def pytest_configure(config: pytest.Config) -> None:
    if REPORTS in os.environ:
        config.pluginmanager.register(Reporter(int(os.environ.pop(REPORTS))))
