"""The bare loop, `benchmarks.training.bare_loop`, over the directory of tensors."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.training.arms import Arm, ArmSettings, OnStep, Order, Step


@contextmanager
def open_bare(settings: ArmSettings) -> Iterator[Arm]:
    """Bind the process to its cores and load torch and transformers."""
    os.sched_setaffinity(0, settings.cores)
    import torch

    import benchmarks.training.bare_loop  # noqa: F401  seconds of imports that are no part of a run

    torch.set_num_threads(1)
    yield _Bare()


class _Bare:
    def run(self, order: Order, on_step: OnStep) -> None:
        from benchmarks.training.bare_loop import train

        def report(line: dict[str, float]) -> None:
            on_step(Step(int(line["step"]), line["loss"], int(line["loss_tokens"]), line["seconds"]))

        train(Path(order.tensors), order.model, order.workload, "cpu", report)
