"""``python -m training JOB.json`` or ``torchrun --nproc-per-node 2 -m training JOB.json``: one job without Ray."""

import argparse
import logging
import sys
from pathlib import Path

from configs.errors import UserError
from training.job import StepMetrics, TrainJob
from training.loop import train
from training.parallel import joined_world


def _print_step(metrics: StepMetrics) -> None:
    evaluation = "" if metrics.evaluation_loss is None else f"  evaluation loss {metrics.evaluation_loss:.4f}"
    print(
        f"step {metrics.step}/{metrics.num_steps}  loss {metrics.loss:.4f}{evaluation}  "
        f"{metrics.tokens_per_s:,.0f} tokens/s",
        flush=True,
    )


def main() -> int:
    """Run the job named on the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("job", type=Path, help="a TrainJob as JSON")
    path = parser.parse_args().job
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    job = TrainJob.from_json(path.read_text())
    try:
        with joined_world(job.device) as world:
            result = train(job, _print_step, world)
            if world.rank == 0:
                print(f"{result.num_steps} steps, loss {result.final_loss:.4f}, exported to {result.hf_dir}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
