"""The embedded cluster leaves nothing behind, also when its own processes don't answer any more."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.program import ROOT, end_session, environment, processes_of

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

# A process of its own, as Ray reads its token once in a process.
PROGRAM = """
import signal, sys, psutil
from upath import UPath
from cluster.run_dir import RunDir
from cluster.session import ray_session
from configs.schema import ClusterConfig, DeadlinesConfig

with ray_session(ClusterConfig(), DeadlinesConfig(shutdown=3), RunDir(UPath(sys.argv[1]))):
    started = psutil.Process().children(recursive=True)
    for each in started:
        each.send_signal(signal.SIGSTOP)
print(len(started))
"""


def test_session_whose_processes_hang_ends_within_its_deadline_and_leaves_no_process(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            out, _ = process.communicate(timeout=60)
            left = processes_of(process.pid)
        finally:
            end_session(process.pid)
    assert process.returncode == 0
    assert int(out) > 3  # Ray's own processes, the agents below the raylet among them
    assert left == []
