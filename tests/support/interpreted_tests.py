"""Tests that use the fixture `triton_on_cpu` run in a pytest of their own, beside the one that was started.

Triton decides when it is imported whether kernels are interpreted, and Inductor remembers which devices it found: no
other test should meet either. The other pytest starts with the first test, runs ahead, and reports through a pipe; its
tests appear in the output as if they had run here. With TRITON_INTERPRET=1 in the environment they do (for a debugger).

Where pytest-xdist shares the tests out among workers, each worker has a pytest that interprets, and asks it for the
tests of a file when it comes to the file: until then it may be another worker's.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
CHANNELS = "METIS_TEST_CHANNELS"  # the file descriptors that the other pytest is asked by and reports to
WORKER = "PYTEST_XDIST_WORKER"


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
        self.asked: set[str] = set()  # of those that are left
        self.results: dict[str, tuple[str, str, list[Any]]] = {}
        self.process: subprocess.Popen[bytes] | None = None
        self.reports: Any = None
        self.broken: str | None = None

    def start(self) -> None:
        reports, report_to = os.pipe()
        asked_by, ask = os.pipe()
        self.log = tempfile.TemporaryFile()  # noqa: SIM115
        config = self.config
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={config.rootpath}"]
        command += [] if config.inipath is None else ["-c", str(config.inipath)]
        command += [f"--long={config.option.long}"] if hasattr(config.option, "long") else []
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
        self.process = subprocess.Popen(
            [*command, *self.left],
            cwd=config.rootpath,
            env={
                **inherited,
                "TRITON_INTERPRET": "1",
                "CUDA_VISIBLE_DEVICES": "",
                CHANNELS: f"{asked_by} {report_to}",
            },
            pass_fds=[asked_by, report_to],
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )
        os.close(asked_by)
        os.close(report_to)
        self.started, self.reports, self.requests = list(self.left), os.fdopen(reports), os.fdopen(ask, "w")
        self._send([test for test in self.left if test in self.asked])

    def ask_for(self, wanted: Callable[[str], bool]) -> None:
        """Has it run these tests, in their order."""
        new = [test for test in self.left if test not in self.asked and wanted(test)]
        self.asked.update(new)
        if self.process is not None:
            self._send(new)

    def _send(self, tests: list[str]) -> None:
        if tests:
            with contextlib.suppress(BrokenPipeError):  # it has ended, and why is in what it printed
                print(json.dumps([self.started.index(test) for test in tests]), file=self.requests, flush=True)

    def result_of(self, test: str) -> tuple[str, str, list[Any]]:
        running: str | None = None
        self.ask_for(lambda other: other.partition("::")[0] == test.partition("::")[0])
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


@pytest.hookimpl(tryfirst=True)  # pytest-xdist has a loop of its own
def pytest_runtestloop(session: pytest.Session) -> None:
    tests = [item.nodeid for item in session.items if isinstance(item, InterpretedTest)]
    if tests and not session.config.option.collectonly:
        session.config.stash[_PROCESS] = process = InterpreterProcess(session.config, tests)
        if WORKER not in os.environ:
            process.ask_for(lambda test: True)
            process.start()


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _PROCESS in session.config.stash:
        session.config.stash[_PROCESS].stop()


# In the other pytest. A line of JSON comes in with the tests to run, by their places among the arguments. A line goes
# out when a test starts, [name], and when it ends, [name, outcome, text, sections].


class Reporter:
    """Reports to the pytest that started this one."""

    def __init__(self, asked_by: int, report_to: int) -> None:
        self.requests, self.pipe = os.fdopen(asked_by), os.fdopen(report_to, "w")
        self.worst: dict[str, pytest.TestReport] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """In place of pytest's own: what is asked for, until nothing more will be."""
        if session.testsfailed:
            raise session.Interrupted("the tests can't be collected")
        items = {item.nodeid: item for item in session.items}
        for line in self.requests:
            asked = [items[session.config.args[place]] for place in json.loads(line)]
            for item, following in zip(asked, [*asked[1:], None], strict=True):
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        return True

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
    if CHANNELS in os.environ:
        config.pluginmanager.register(Reporter(*map(int, os.environ.pop(CHANNELS).split())))
