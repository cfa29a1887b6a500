"""Fill and speed of the plan that packs an epoch, and TRL's best-fit-decreasing on the same lengths beside it."""

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.processes import ROOT, ArmFailed
from benchmarks.statistics import median_interval
from benchmarks.training.environment import make_trl_environment
from benchmarks.training.goals import Line
from benchmarks.training.workload import Int64s, tail_lengths

CAPACITY = 4096
WINDOW_ROWS = 4096
MEDIAN_ROW = 384
TRL_S = 300


def measure_packing(num_windows: int, repeats: int, directory: Path, cache: Path | None) -> list[Line]:
    """Return fill, tokens lost and speed; without ``cache`` TRL is left out."""
    lengths = np.random.default_rng(0).permutation(tail_lengths(num_windows * WINDOW_ROWS, MEDIAN_ROW, CAPACITY))
    seconds, plan = [], None
    for epoch in range(repeats):
        started = time.perf_counter()
        plan = _plan(lengths, epoch)
        seconds.append(time.perf_counter() - started)
    trl = "" if cache is None else _describe_trl(lengths, directory, cache)
    return [
        Line("packing-fill", median_interval([plan.fill]), trl),
        Line("packing-lost", median_interval([count_lost(lengths, plan.rows, plan.pack_starts, CAPACITY)])),
        Line("packing-speed", median_interval([len(lengths) / each for each in seconds])),
    ]


def count_lost(lengths: Int64s, rows: Int64s, pack_starts: Int64s, capacity: int) -> float:
    """Return the tokens of rows that are in no pack; infinity when a row is in two or a pack has too many."""
    if len(np.unique(rows)) != len(rows) or np.add.reduceat(lengths[rows], pack_starts[:-1]).max() > capacity:
        return float("inf")
    return float(lengths.sum() - lengths[rows].sum())


def _plan(lengths: Int64s, epoch: int) -> Any:
    from configs.schema import TrainingConfig
    from training.corpus import Corpus, RowGroup
    from training.plan import plan_epoch

    config = TrainingConfig(sequence_length=CAPACITY, packing_window_rows=WINDOW_ROWS)
    starts = range(0, len(lengths), WINDOW_ROWS)
    groups = tuple(RowGroup("rows", i, min(WINDOW_ROWS, len(lengths) - start), start) for i, start in enumerate(starts))
    all_rows = np.ones(len(lengths), np.bool_)
    sizes = lengths.astype(np.int32)
    corpus = Corpus(
        groups=groups,
        lengths=sizes,
        loss_lengths=sizes,
        is_training=all_rows,
        is_evaluation=~all_rows,
        overlong_dropped=0,
    )
    return plan_epoch(corpus, config, epoch)


def _describe_trl(lengths: Int64s, directory: Path, cache: Path) -> str:
    path = directory / "lengths.json"
    path.write_text(json.dumps(lengths.tolist()))
    command = [str(make_trl_environment(cache)), "-m", "benchmarks.training.trl_packing"]
    arguments = [str(path), str(CAPACITY), str(WINDOW_ROWS)]
    done = subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=TRL_S, check=False)
    if done.returncode:
        raise ArmFailed(f"TRL's packing ended with status {done.returncode}\n{done.stderr[-2000:]}")
    trl = json.loads(done.stdout.splitlines()[-1])
    return f"TRL's bfd {trl['fill']:.5f}, {trl['lost']:,} tokens lost, {trl['rows_per_s']:,.0f} rows/s with its tokens"
