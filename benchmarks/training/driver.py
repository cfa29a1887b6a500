"""Runs the chosen groups of lines one after another and prints one table of all of them."""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.processes import ArmFailed
from benchmarks.training.arms import WARM_UP_STEPS
from benchmarks.training.checkpoints import measure_checkpoints
from benchmarks.training.comparisons import compare_arms, format_runs, measure_curve
from benchmarks.training.goals import Line, format_lines
from benchmarks.training.memory import measure_memory
from benchmarks.training.packing import measure_packing
from benchmarks.training.recovery import measure_elastic, measure_resume
from benchmarks.training.throughput import Arms, Run
from benchmarks.training.workload import Workload
from cluster.signals import interrupt_on_sigterm


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything is measured."""

    throughput: Workload
    curve: Workload
    recovery: Workload
    memory: Workload
    pairs: int
    trl_pairs: int
    checkpoint_every: int
    checkpoint_pairs: int
    packing_windows: int
    packing_repeats: int


# Five sequences do not divide by two workers, so that the sums differ in their order and an empty sequence fills up.
SMALL = Workload("tiny", 256, 5, num_rows=2048, median_row=24, num_steps=40)
DEFAULT = Sizes(
    throughput=Workload("5m", 1024, 2, num_rows=4096, median_row=96, num_steps=WARM_UP_STEPS + 6),
    curve=Workload("5m", 1024, 1, num_rows=4096, median_row=96, num_steps=50),
    recovery=SMALL,
    memory=Workload("80m", 128, 2, num_rows=256, median_row=24, num_steps=3),
    pairs=10,
    trl_pairs=4,  # its goals are far from 1
    checkpoint_every=8,
    checkpoint_pairs=3,
    packing_windows=16,
    packing_repeats=7,
)
QUICK = Sizes(
    throughput=Workload("tiny", 256, 2, num_rows=1024, median_row=24, num_steps=WARM_UP_STEPS + 10),
    curve=Workload("tiny", 256, 2, num_rows=1024, median_row=24, num_steps=50),
    recovery=SMALL,
    memory=Workload("29m", 128, 2, num_rows=256, median_row=24, num_steps=3),
    pairs=2,
    trl_pairs=1,
    checkpoint_every=5,
    checkpoint_pairs=1,
    packing_windows=4,
    packing_repeats=3,
)


def run_benchmark(options: argparse.Namespace) -> int:
    """Returns 1 when a goal is not met, 2 when something could not be measured."""
    interrupt_on_sigterm()  # so that the arms end with this process
    directory = Path(tempfile.mkdtemp(prefix="training-", dir="/tmp"))
    bench = Bench(options, directory)
    started = time.monotonic()
    try:
        bench.measure()
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        if options.json:
            Path(options.json).write_text(json.dumps(bench.to_dict(), indent=1))
    bench.print_table()
    print(f"{(time.monotonic() - started) / 60:.1f} minutes")
    if bench.failures:
        return 2
    return int(not all(line.is_met for line in bench.lines))


class Bench:
    """What has been measured so far; a group that fails is reported, and the next one begins."""

    def __init__(self, options: argparse.Namespace, directory: Path) -> None:
        self.lines: list[Line] = []
        self.runs: dict[str, list[Run]] = {}
        self.failures: list[str] = []
        self._options = options
        self._directory = directory
        self._sizes = QUICK if options.quick else DEFAULT

    def measure(self) -> None:
        """Run the chosen groups."""
        options, sizes, directory = self._options, self._sizes, self._directory
        has_trl = any(arm.startswith("trl") for arm in options.arms)
        groups: dict[str, Callable[[], list[Line]]] = {
            "resume": lambda: measure_resume(sizes.recovery, options.seed, directory),
            "elastic": lambda: measure_elastic(sizes.recovery, options.seed, directory),
            "packing": lambda: measure_packing(
                sizes.packing_windows, sizes.packing_repeats, directory, options.cache if has_trl else None
            ),
            "checkpoint": lambda: measure_checkpoints(
                self._shaped(sizes.throughput), sizes.checkpoint_every, sizes.checkpoint_pairs, directory, options.cache
            ),
            "memory": lambda: measure_memory(sizes.memory, replace(SMALL, num_steps=3), directory),
        }
        if {"throughput", "curve"} & {*options.lines}:
            print("arms", flush=True)
            self._measure_arms()
        for name, measure in groups.items():
            if name in options.lines:
                print(name, flush=True)
                try:
                    self.lines += measure()
                except ArmFailed as error:
                    print(f"error: {error}", file=sys.stderr, flush=True)
                    self.failures.append(f"{name}: {str(error).splitlines()[0]}")

    def print_table(self) -> None:
        """Print the arms' own figures, the table, and what could not be measured."""
        print()
        if self.runs:
            print(format_runs(self.runs) + "\n")
        if self.lines:
            print(format_lines(self.lines))
        for failure in self.failures:
            print(f"not measured: {failure}")

    def to_dict(self) -> dict[str, Any]:
        """Return everything measured as JSON."""
        return {
            "sizes": asdict(self._sizes),
            "lines": {line.name: line.to_dict() for line in self.lines},
            "runs": {name: [asdict(run) for run in runs] for name, runs in self.runs.items()},
            "failures": self.failures,
        }

    def _measure_arms(self) -> None:
        options, sizes = self._options, self._sizes
        names = options.arms if "throughput" in options.lines else ["torchrun", "bare"]
        with ExitStack() as stack:
            arms = Arms(names, options.cache, stack)
            try:
                if "throughput" in options.lines:
                    pairs = options.pairs or sizes.pairs
                    trl_pairs = options.pairs or sizes.trl_pairs
                    rounds = {name: trl_pairs if name.startswith("trl") else pairs for name in names}
                    self.runs = arms.run_rounds(self._shaped(sizes.throughput), rounds, self._directory)
                    self.lines += compare_arms(self.runs)
                if "curve" in options.lines:
                    self.lines += measure_curve(arms, self._shaped(sizes.curve), self._directory)
            finally:
                self.failures += arms.failures

    def _shaped(self, workload: Workload) -> Workload:
        return replace(workload, shape=self._options.shape) if self._options.shape else workload
