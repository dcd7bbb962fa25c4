import subprocess
import sys
import time

import pytest

from metis_compile.bench.clock import cpu_seconds, living_descendants, seconds

BUSY = "import time; end = time.process_time() + 0.3\nwhile time.process_time() < end: pass\n"


def test_wall_time() -> None:
    assert 0.05 <= seconds(lambda: time.sleep(0.05), "cpu") < 5


def test_cpu_time_of_a_child_that_has_ended() -> None:
    before = cpu_seconds()
    subprocess.run([sys.executable, "-c", BUSY], check=True)
    assert cpu_seconds() - before >= 0.28


@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_cpu_time_of_a_grandchild_that_still_runs() -> None:
    child = (
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {(BUSY + 'print(1, flush=True); input()')!r}])"
    )
    before = living_descendants()
    with subprocess.Popen(
        [sys.executable, "-c", child], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert living_descendants() - before >= 0.28
        process.communicate("\n")
