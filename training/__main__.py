"""``python -m training JOB.json`` or ``torchrun --nproc-per-node 2 -m training JOB.json``: one job without Ray.

SIGTERM, with which schedulers and clouds announce that they take a machine back, ends it at the next step with a
checkpoint of that step.
"""

import argparse
import logging
import signal
import sys
import threading
from pathlib import Path
from types import FrameType

from configs.errors import UserError
from training.job import StepMetrics, TrainJob
from training.loop import train
from training.parallel import joined_world
from training.preemption import Preempted

_STATUS_PREEMPTED = 128 + signal.SIGTERM


def _print_step(metrics: StepMetrics) -> None:
    evaluation = "" if metrics.evaluation_loss is None else f"  evaluation loss {metrics.evaluation_loss:.4f}"
    print(
        f"step {metrics.step}/{metrics.num_steps}  loss {metrics.loss:.4f}{evaluation}  "
        f"{metrics.tokens_per_s:,.0f} tokens/s",
        flush=True,
    )


def listen_for_sigterm() -> threading.Event:
    """Return an event that the first SIGTERM sets; a second one ends the process at once."""
    noticed = threading.Event()

    def notice(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        noticed.set()

    signal.signal(signal.SIGTERM, notice)
    return noticed


def _read_job(path: Path) -> TrainJob:
    try:
        return TrainJob.from_json(path.read_text())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a job that this program has written: {type(error).__name__}: {error}") from None


def main() -> int:
    """Run the job named on the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("job", type=Path, help="a TrainJob as JSON")
    path = parser.parse_args().job
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        job = _read_job(path)
        noticed = listen_for_sigterm()
        with joined_world(job.device) as world:
            result = train(job, _print_step, world, noticed.is_set)
            if world.rank == 0:
                print(f"{result.num_steps} steps, loss {result.final_loss:.4f}, exported to {result.hf_dir}")
    except Preempted as preempted:
        print(f"{preempted}; run the same command to go on", file=sys.stderr)
        return _STATUS_PREEMPTED
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
