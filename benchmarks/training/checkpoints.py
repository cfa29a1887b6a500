"""What checkpoints cost the steps: asynchronous ones against none, and what blocks against synchronous ones.

One thread computes, and the process may use every core: what writes in the background needs one, as beside a GPU. The
first checkpoint, which allocates the buffers of all, is part of the warm-up.
"""

import os
from dataclasses import replace
from pathlib import Path

from benchmarks.statistics import Interval, median_interval, paired_ratio
from benchmarks.training.goals import Line
from benchmarks.training.throughput import Run, open_arm, prepare, run_once
from benchmarks.training.workload import Workload

CHECKPOINTS = 2  # in one measured run
NEVER = 10**6


def measure_checkpoints(workload: Workload, every: int, pairs: int, directory: Path, cache: Path) -> list[Line]:
    """Return both lines; a run takes ``CHECKPOINTS`` measured checkpoints, ``every`` so many steps."""
    # What a checkpoint holds up is in the line of the step after it.
    warm_up, num_steps = every + 1, (1 + CHECKPOINTS) * every + 1
    modes = {
        "none": {"checkpoint_every": NEVER},
        "async": {"checkpoint_every": every, "async_checkpoint": True},
        "sync": {"checkpoint_every": every, "async_checkpoint": False},
    }
    runs: dict[str, list[Run]] = {mode: [] for mode in modes}
    prepared = prepare(replace(workload, num_steps=num_steps), directory / "checkpoints")
    with open_arm("torchrun", sorted(os.sched_getaffinity(0)), cache) as child:
        for pair in range(pairs):
            for mode in list(modes)[:: -1 if pair % 2 else 1]:
                order = prepared.order(directory / f"checkpoints-{mode}-{pair}", **modes[mode])
                run = run_once(child, order, warm_up)
                runs[mode].append(run)
                print(
                    f"  pair {pair} {mode}: {run.seconds / (num_steps - warm_up):.3f} s a step, "
                    f"{run.checkpoint_blocked_s:.3f} s blocked",
                    flush=True,
                )
    return compare_modes(runs, f"every {every} steps")


def compare_modes(runs: dict[str, list[Run]], note: str) -> list[Line]:
    """Return the lines of runs by mode; all runs have the same steps."""
    ratio = paired_ratio(*([run.seconds for run in runs[mode]] for mode in ("async", "none")))
    inflation = Interval(ratio.median - 1, ratio.low - 1, ratio.high - 1)
    blocked = paired_ratio(*([run.checkpoint_blocked_s for run in runs[mode]] for mode in ("async", "sync")))
    synchronous = median_interval([run.checkpoint_blocked_s / CHECKPOINTS for run in runs["sync"]]).median
    return [
        Line("checkpoint-inflation", inflation, note),
        Line("checkpoint-blocked", blocked, f"{1000 * synchronous:.0f} ms a synchronous one"),
    ]
