"""Ending what a session has started."""

import subprocess
import sys
import time

import psutil
import pytest

from cluster.session import _end_processes

pytestmark = pytest.mark.unit

# Like a raylet with its agent: whatever becomes of the child, there is another one.
PARENT = """
import signal, subprocess
signal.signal(signal.SIGTERM, signal.SIG_IGN)
while True:
    subprocess.run(["sleep", "600"])
"""


def child_of(process: psutil.Process, *, other_than: int = 0) -> psutil.Process:
    give_up_at = time.monotonic() + 20
    while not (found := [each for each in process.children() if each.pid != other_than and each.name() == "sleep"]):
        assert time.monotonic() < give_up_at
        time.sleep(0.01)
    return found[0]


def is_alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def test_child_that_a_lingering_process_starts_again_is_ended_with_it() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT]) as started:
        parent = psutil.Process(started.pid)
        first = child_of(parent)
        first.kill()
        second = child_of(parent, other_than=first.pid)
        _end_processes({parent, first}, 0.2)
        give_up_at = time.monotonic() + 5  # a signal takes a moment, and nobody reaps an orphan for us
        while (left := [each for each in (parent, second) if is_alive(each)]) and time.monotonic() < give_up_at:
            time.sleep(0.01)
        for each in left:
            each.kill()
    assert left == []
