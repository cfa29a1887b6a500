"""Losses after kills and with other numbers of workers against an undisturbed run, through the command line alone."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from benchmarks.processes import LOG_LINES, ROOT, ArmFailed
from benchmarks.statistics import median_interval
from benchmarks.training.arm import ENVIRONMENT
from benchmarks.training.comparisons import largest_difference
from benchmarks.training.goals import Line
from benchmarks.training.throughput import prepare
from benchmarks.training.workload import Workload, build_job

RUN_S = 600.0
LOOK_S = 0.005
CHECKPOINT_EVERY = 5


def measure_resume(workload: Workload, seed: int, directory: Path) -> list[Line]:
    """Kill one process at two random steps and let the same command go on each time."""
    whole, broken = (write_job(workload, directory / name) for name in ("whole", "broken"))
    train_until(whole, 1, None)
    kills = draw_kills(workload.num_steps, seed)
    for step in kills:
        train_until(broken, 1, step)
    train_until(broken, 1, None)
    return [_compare("resume", whole, broken, f"killed at steps {kills[0]} and {kills[1]} of {workload.num_steps}")]


def measure_elastic(workload: Workload, seed: int, directory: Path) -> list[Line]:
    """Begin with two ranks, go on with one, end with two; each is killed at a random step."""
    whole, elastic = (write_job(workload, directory / name) for name in ("two", "elastic"))
    train_until(whole, 2, None)
    kills = draw_kills(workload.num_steps, seed)
    train_until(elastic, 2, kills[0])
    train_until(elastic, 1, kills[1])
    train_until(elastic, 2, None)
    return [_compare("elastic", whole, elastic, f"changed at steps {kills[0]} and {kills[1]}")]


def draw_kills(num_steps: int, seed: int) -> list[int]:
    """Return two different steps, ascending, with a checkpoint before the first and between them."""
    rng = random.Random(seed)
    first = rng.randint(CHECKPOINT_EVERY + 1, num_steps // 2)
    return [first, rng.randint(first + CHECKPOINT_EVERY + 1, num_steps - 1)]


def write_job(workload: Workload, directory: Path, **training: Any) -> Path:
    """Prepare a job below ``directory`` and return its JSON file."""
    prepared = prepare(workload, directory)
    settings = {"checkpoint_every": CHECKPOINT_EVERY} | training
    job = build_job(workload, prepared.rows, prepared.model, directory / "out", **settings)
    path = directory / "job.json"
    path.write_text(replace(job, name="recovery").to_json())
    return path


def train_until(job: Path, num_ranks: int, step: int | None) -> None:
    """Run the job with ``num_ranks`` processes; with ``step``, kill all of them once its line is there."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
    log_path = job.with_name("train.log")
    with open(log_path, "ab") as log:
        process = subprocess.Popen(
            [*launcher, "-m", "training", str(job)], cwd=ROOT, env=os.environ | ENVIRONMENT, stdout=log, stderr=log
        )
        try:
            _wait(process, job, step, log_path)
        finally:
            _kill_tree(process)


def _wait(process: "subprocess.Popen[bytes]", job: Path, step: int | None, log_path: Path) -> None:
    give_up_at = time.monotonic() + RUN_S
    while process.poll() is None:
        if step is not None and last_step(read_metrics(job)) >= step:
            return
        if time.monotonic() > give_up_at:
            raise ArmFailed(f"{job} took more than {RUN_S:.0f} s")
        time.sleep(LOOK_S)
    if process.returncode != 0 or step is not None:
        end = "\n".join(log_path.read_text(errors="replace").splitlines()[-LOG_LINES:])
        raise ArmFailed(f"{job} ended with status {process.returncode} before it was told to\n{end}")


def _kill_tree(process: "subprocess.Popen[bytes]") -> None:
    with suppress(psutil.NoSuchProcess):
        tree = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        for each in tree:  # workers first: without them torchrun's agent would start new ones
            with suppress(psutil.NoSuchProcess):
                each.send_signal(signal.SIGKILL)
        psutil.wait_procs(tree)
    process.wait()


def read_metrics(job: Path) -> list[dict[str, Any]]:
    """Return the complete lines of the job's metrics."""
    try:
        text = (job.parent / "out" / "metrics.jsonl").read_text()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.split("\n")[:-1]]


def last_step(metrics: Sequence[dict[str, Any]]) -> int:
    """Return the last step that is there, 0 before the first."""
    return int(metrics[-1]["step"]) if metrics else 0


def _compare(name: str, whole: Path, broken: Path, note: str) -> Line:
    expected, found = ([line["loss"] for line in read_metrics(job)] for job in (whole, broken))
    return Line(name, median_interval([largest_difference(expected, found)]), note)
