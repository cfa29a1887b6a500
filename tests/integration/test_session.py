"""The embedded cluster leaves nothing behind, also when its own processes hang; one that is joined tells its size."""

import tempfile
from pathlib import Path

import pytest

from tests.integration.program import end_session, processes_of, run_code, start_python

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

# A thread that asks Ray for something after the session, as Ray Data's and Ray Serve's do when a run is interrupted.
LATE = """
import sys, threading
from upath import UPath
from cluster.run_dir import RunDir
from cluster.session import ray_session
from configs.schema import ClusterConfig, DeadlinesConfig

with ray_session(ClusterConfig(), DeadlinesConfig(), RunDir(UPath(sys.argv[1]))):
    import ray
    ray.get(ray.put(1))
ray.init = lambda: print("another cluster")
late = threading.Thread(target=ray.put, args=[1])
late.start()
late.join()
"""


def test_what_asks_ray_after_a_session_starts_no_other_cluster(tmp_path: Path) -> None:
    answer = run_code(LATE, str(tmp_path))
    assert answer.out == ""
    assert "has not been started" in answer.err, answer.err


@pytest.mark.parametrize("program", [PROGRAM, ORPHANS], ids=["all hang", "agents without their raylet"])
def test_session_ends_within_its_deadline_and_leaves_no_process(tmp_path: Path, program: str) -> None:
    with start_python("-c", program, str(tmp_path)) as process:
        try:
            out, _ = process.communicate(timeout=60)
            left = processes_of(process.pid)
        finally:
            end_session(process.pid)
    assert process.returncode == 0
    assert int(out) > 3  # Ray's own processes, the agents below the raylet among them
    assert left == []


# Of a head that was started by hand. Ray's own process beside it reports after some seconds.
JOINED = """
import os, sys, time
from ray.cluster_utils import Cluster
from upath import UPath
from cluster import limits
from cluster.limits import check_student, check_teachers
from cluster.run_dir import RunDir
from cluster.session import ray_session
from configs.errors import UserError
from configs.schema import ClusterConfig, DeadlinesConfig
from tests.unit.configs.trees import make_config

limits.JOIN_S = 0.0  # all have joined
size = {"num_cpus": 4, "num_gpus": 1, "resources": {"accelerator_type:A10G": 1}, "object_store_memory": 80 << 20}
head = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, "temp_dir": sys.argv[2], **size})
with ray_session(ClusterConfig(address=head.address), DeadlinesConfig(), RunDir(UPath(sys.argv[1]))) as session:
    give_up_at = time.monotonic() + 30
    while not session.is_fixed():
        assert time.monotonic() < give_up_at
        time.sleep(0.1)
    teacher = {"teacher__model": "a", "teacher__make": None, "teacher__min_replicas": 2, "teacher__max_replicas": 2}
    many = make_config(**teacher, teacher__accelerator_type="A10G")
    other = make_config(**teacher | {"teacher__min_replicas": 1}, teacher__accelerator_type="H100")
    for check in (
        lambda: check_teachers(many, session, ["teacher"]),
        lambda: check_teachers(other, session, ["teacher"]),
        lambda: check_student(make_config(training__num_workers=5, student__device="cpu"), session),
    ):
        try:
            check()
        except UserError as error:
            print(error)
head.shutdown()
"""


def test_cluster_that_was_started_by_hand_is_known_not_to_grow(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="sh-head-", ignore_cleanup_errors=True) as temp_dir:
        answer = run_code(JOINED, str(tmp_path), temp_dir, timeout_s=60, RAY_AUTH_MODE="disabled")
    replicas, kind, workers = answer.out.splitlines()
    assert replicas.startswith("teacher.min_replicas: 2 GPUs are needed at the same time")
    assert "the cluster has 1 and cannot grow" in replicas
    assert kind.startswith("teacher.accelerator_type=H100: the cluster has no GPU of that type and cannot grow")
    assert "it has A10G" in kind
    assert workers.startswith("training.num_workers: 5 CPUs are needed at the same time")
