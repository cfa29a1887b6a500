"""Ours as ``torchrun --nproc-per-node 1 -m training JOB.json`` runs it: this process is torchrun's one worker."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.training.arms import Arm, ArmSettings, OnStep, Order, Step
from benchmarks.training.workload import Workload, build_job


@contextmanager
def open_torchrun(settings: ArmSettings) -> Iterator[Arm]:
    """Bind the process to its cores and load the loop."""
    os.sched_setaffinity(0, settings.cores)
    import training.loop  # noqa: F401  seconds of imports that are no part of a run

    yield _Torchrun()


class _Torchrun:
    def run(self, order: Order, on_step: OnStep) -> None:
        from training.job import JobDevice, StepMetrics
        from training.loop import train
        from training.parallel import joined_world

        seen = 0

        def report(metrics: StepMetrics) -> None:
            nonlocal seen
            on_step(to_step(metrics, seen))
            seen = metrics.loss_tokens

        workload = Workload(**order.workload)
        job = build_job(workload, Path(order.rows), order.model, Path(order.output_dir), **order.training)
        with joined_world(JobDevice.CPU) as world:
            train(job, report, world)


def to_step(metrics: "StepMetrics", loss_tokens_before: int) -> Step:  # noqa: F821
    """Return a line of metrics as a step."""
    return Step(
        number=metrics.step,
        loss=metrics.loss,
        loss_tokens=metrics.loss_tokens - loss_tokens_before,
        seconds=metrics.seconds,
        data_wait_s=metrics.data_wait_s,
        checkpoint_blocked_s=metrics.checkpoint_blocked_s,
    )
