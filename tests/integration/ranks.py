"""Ranks of the training loop as processes forked from one that has imported everything: a start takes no seconds."""

import json
import multiprocessing
import os
import signal
import socket
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from configs.errors import UserError
from training.__main__ import listen_for_sigterm
from training.job import JobDevice, StepMetrics, TrainJob
from training.loop import train
from training.parallel import joined_world
from training.preemption import Preempted

FINISHED, PREEMPTED, MISTAKE = 0, 10, 11


def run_ranks(job: TrainJob, size: int, *, signal_at: int | None = None, number: int = signal.SIGTERM) -> list[int]:
    """Run the job in ``size`` processes and return their exit statuses by rank.

    The last rank gets the signal ``number`` before step ``signal_at`` + 1.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = _context()
    ranks = [
        context.Process(target=_run_rank, args=(job.to_json(), rank, size, port, signal_at, number))
        for rank in range(size)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
    statuses = [rank.exitcode for rank in ranks]
    for rank in ranks:
        rank.kill()
    assert None not in statuses, "a rank hangs"
    return [status for status in statuses if status is not None]


def curve_of(job: TrainJob) -> list[tuple[int, float, float]]:
    """Return step, loss and gradient norm of each line of metrics."""
    lines: list[dict[str, Any]] = [
        json.loads(line) for line in Path(job.output_dir, "metrics.jsonl").read_text().splitlines()
    ]
    return [(line["step"], line["loss"], line["grad_norm"]) for line in lines]


def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["training.loop", "tests.integration.ranks"])
    return context


def _run_rank(job_json: str, rank: int, size: int, port: int, signal_at: int | None, number: int) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    job, noticed, num_asked = TrainJob.from_json(job_json), listen_for_sigterm(), 0

    def is_noticed() -> bool:  # asked at the start of each step
        nonlocal num_asked
        num_asked += 1
        if rank == size - 1 and num_asked - 1 == signal_at:
            os.kill(os.getpid(), number)
        return noticed.is_set()

    try:
        with joined_world(JobDevice.CPU) as world:
            train(job, _ignore, world, is_noticed)
    except Preempted:
        raise SystemExit(PREEMPTED) from None
    except UserError as error:
        Path(job.output_dir, f"error-{rank}").write_text(str(error))
        raise SystemExit(MISTAKE) from None


def _ignore(_: StepMetrics) -> None:
    pass
