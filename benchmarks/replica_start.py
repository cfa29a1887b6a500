"""How long a teacher takes from nothing to its first token: ``python -m benchmarks replica_start [--model 4m]``.

Each start is a process and a Ray cluster of its own. The seconds of each part are what a run waits for one after the
other; the clients of a run start meanwhile, and are no part of it.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import psutil

from benchmarks.processes import measure_in_child

GOAL_S = 20.0  # from asking Serve for the teacher to its first token
DEADLINE_S = 300.0
PARTS = ("imports", "ray", "serve", "replica", "token")
OF_THE_REPLICA = ("built in", "cpu")
APP_NAME = "teacher"


def main(arguments: list[str]) -> int:
    """Print a line a start and the medians; returns 1 when the goal is not met."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks replica_start", description=__doc__)
    parser.add_argument("--model", default="4m", help="one of benchmarks.generation.models")
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        print(json.dumps(start_once(options.child)))
        return 0
    from benchmarks.generation.models import make_model  # imports torch

    directory = Path(tempfile.mkdtemp(prefix="start-", dir="/tmp"))  # Unix sockets lie below it: a short path
    try:
        model = make_model(options.model, directory)
        print("  ".join(f"{part:>8}" for part in (*PARTS, "sum", *OF_THE_REPLICA)) + "  (seconds)")
        starts = [_show(measure_in_child("replica_start", model, 2 * DEADLINE_S)) for _ in range(options.starts)]
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    to_token = statistics.median(start["replica"] + start["token"] for start in starts)
    print(f"median from asking for the teacher to its first token: {to_token:.1f} s; goal {GOAL_S:.0f} s")
    return int(to_token > GOAL_S)


def start_once(model: str) -> dict[str, float]:
    """Seconds of each part, in this process; ``built in`` and ``cpu`` are of the replica's own."""
    moments = [time.monotonic()]
    from benchmarks.ray_cluster import ray_cluster
    from configs.schema import Device, EngineConfig, EngineKind, TeacherConfig
    from services.generation import GenerateRequest

    directory = Path(tempfile.mkdtemp(prefix="start-", dir="/tmp"))
    try:
        import ray  # noqa: F401  # a part of its own
        from ray import serve

        from services import deployment

        moments.append(time.monotonic())
        with ray_cluster(directory):
            moments.append(time.monotonic())
            serve.start(proxy_location="Disabled", logging_config={"log_level": "WARNING", "enable_access_log": False})
            moments.append(time.monotonic())
            engine = EngineConfig(dtype="float32", max_num_seqs=128, max_model_len=512)
            teacher = TeacherConfig(model=model, engine=engine)
            app = deployment.TeacherApp(APP_NAME, "start", model, teacher, Device.CPU, EngineKind.IN_PROCESS, 1)
            handle = deployment.start_teacher(app)
            deployment.wait_until_ready(APP_NAME, DEADLINE_S, lambda _: None)
            moments.append(time.monotonic())
            request = GenerateRequest("first", [1, 2, 3, 4], 1, 1, 0.0, 1.0, 0, (), 0)
            [_] = list(handle.options(stream=True).generate.remote([request]))
            moments.append(time.monotonic())
            built_s = handle.record_autoscaling_stats.remote().result(timeout_s=DEADLINE_S)["cold_start_s"]
            cpu_s = replica_cpu_s()
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    seconds = [after - before for before, after in pairwise(moments)]
    return dict(zip(PARTS, seconds, strict=True)) | {"built in": built_s, "cpu": cpu_s}


def replica_cpu_s() -> float:
    """CPU seconds of the replica so far: what other work on the machine disturbs least."""
    for process in psutil.Process().children(recursive=True):
        if "ServeReplica" in " ".join(process.cmdline()):  # Ray writes what a worker is into its title
            times = process.cpu_times()
            return float(times.user + times.system)
    return 0.0


def _show(start: dict[str, float]) -> dict[str, float]:
    total = sum(start[part] for part in PARTS)
    print(
        "  ".join(
            f"{value:8.1f}"
            for value in (*(start[part] for part in PARTS), total, *(start[each] for each in OF_THE_REPLICA))
        ),
        flush=True,
    )
    return start
