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


# Its agents have lost their parent when the session ends, and hang, so that they do not end by themselves.
ORPHANS = """
import signal, sys, time, psutil
from upath import UPath
from cluster.run_dir import RunDir
from cluster.session import ray_session
from configs.schema import ClusterConfig, DeadlinesConfig

with ray_session(ClusterConfig(), DeadlinesConfig(shutdown=3), RunDir(UPath(sys.argv[1]))):
    [raylet] = [each for each in psutil.Process().children(recursive=True) if each.name() == "raylet"]
    give_up_at = time.monotonic() + 30
    while len(agents := [each for each in raylet.children() if each.name().startswith("ray::")]) < 2:
        assert time.monotonic() < give_up_at, raylet.children()
        time.sleep(0.1)
    for each in agents:
        each.send_signal(signal.SIGSTOP)
    raylet.kill()
    raylet.wait(10)
print(2 + len(agents))
"""


@pytest.mark.parametrize("program", [PROGRAM, ORPHANS], ids=["all hang", "agents without their raylet"])
def test_session_ends_within_its_deadline_and_leaves_no_process(tmp_path: Path, program: str) -> None:
    command = [sys.executable, "-c", program, str(tmp_path)]
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
