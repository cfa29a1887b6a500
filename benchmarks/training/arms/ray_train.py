"""Ours under Ray Train with one worker: this process is the driver, in a Ray of its own."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import psutil

from benchmarks.ray_cluster import ray_cluster
from benchmarks.training.arms import Arm, ArmSettings, OnStep, Order
from benchmarks.training.arms.torchrun import to_step
from benchmarks.training.workload import Workload, build_job

WORKER_START_S = 120.0
FOLLOW_S = 0.02  # `fit` tells of steps twice a second, too late to take CPU time at
WORKER_NAME = "RayTrainWorker"


@contextmanager
def open_ray_train(settings: ArmSettings) -> Iterator[Arm]:
    """Ray's own processes and this one stay off the cores of the worker."""
    os.sched_setaffinity(0, set(settings.others))
    with ray_cluster(settings.directory):
        import training.trainer  # noqa: F401  seconds of imports that are no part of a run

        yield _RayTrain(settings.cores)


class _RayTrain:
    def __init__(self, cores: tuple[int, ...]) -> None:
        self._cores = cores

    def run(self, order: Order, on_step: OnStep) -> None:
        from training.trainer import fit

        workload = Workload(**order.workload)
        job = build_job(workload, Path(order.rows), order.model, Path(order.output_dir), **order.training)
        with self._following(order, on_step):
            fit(job, max_failures=0, worker_start_deadline_s=WORKER_START_S)

    def _following(self, order: Order, on_step: OnStep) -> AbstractContextManager[None]:
        from training.job import StepMetrics
        from training.metrics import following_metrics

        loss_tokens = 0

        def report(_: int, metrics: StepMetrics) -> None:
            nonlocal loss_tokens
            if loss_tokens == 0:
                self._bind_workers()
            step, loss_tokens = to_step(metrics, loss_tokens), metrics.loss_tokens
            on_step(step)

        return following_metrics([order.output_dir], report, FOLLOW_S)

    def _bind_workers(self) -> None:
        """Move every thread of the worker to its cores after the first step; those it starts later follow."""
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                if WORKER_NAME in " ".join(process.cmdline()):
                    for thread in process.threads():
                        with suppress(ProcessLookupError):
                            os.sched_setaffinity(thread.id, self._cores)
