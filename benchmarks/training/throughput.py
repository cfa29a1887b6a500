"""The arms side by side: they train in turns on the same rows, one run of each a round.

The order turns round from one round to the next, so drift of the machine touches all. A run's speed is that of its
steps after the warm-up: loss tokens over seconds; its CPU time is that of the arm's whole process tree meanwhile.
"""

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.processes import ArmFailed, ChildProcess
from benchmarks.training.arms import WARM_UP_STEPS, Order
from benchmarks.training.environment import make_trl_environment
from benchmarks.training.shapes import SHAPES, save_model
from benchmarks.training.tensors import write_tensors
from benchmarks.training.workload import Workload, build_rows, write_rows

ORDER = ("trl-padded", "bare", "torchrun", "ray-train", "trl-packed")
OPEN_S, RUN_S = 300.0, 900.0
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1")


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one arm, from the end of the warm-up to the last step."""

    seconds: float
    loss_tokens: int
    cpu_s: float
    data_wait_s: float
    checkpoint_blocked_s: float
    losses: tuple[float | None, ...]

    @property
    def tokens_per_s(self) -> float:
        """Loss tokens a second."""
        return self.loss_tokens / self.seconds

    @property
    def cpu_s_per_1000(self) -> float:
        """CPU seconds of the process tree for a thousand loss tokens."""
        return 1000 * self.cpu_s / self.loss_tokens


def to_run(steps: Sequence[dict[str, Any]], cpu_s: float, warm_up: int = WARM_UP_STEPS) -> Run:
    """Return the part of an arm's steps after ``warm_up``; ``losses`` are those of all steps."""
    steady = [step for step in steps if step["number"] > warm_up]
    if not steady:
        raise ValueError(f"{len(steps)} steps are not more than the {warm_up} of the warm-up")
    return Run(
        seconds=sum(step["seconds"] for step in steady),
        loss_tokens=sum(step["loss_tokens"] for step in steady),
        cpu_s=cpu_s,
        data_wait_s=sum(step["data_wait_s"] for step in steady),
        checkpoint_blocked_s=sum(step["checkpoint_blocked_s"] for step in steady),
        losses=tuple(step["loss"] for step in steps),
    )


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a round trains on."""

    rows: Path
    tensors: Path
    model: str
    workload: Workload

    def order(self, output_dir: Path, **training: Any) -> Order:
        return Order(str(self.rows), str(self.tensors), self.model, str(output_dir), asdict(self.workload), training)


def prepare(workload: Workload, directory: Path) -> Prepared:
    """Write rows, model and tensors below ``directory``, which is made."""
    directory.mkdir(parents=True)
    rows = directory / "rows.parquet"
    write_rows(build_rows(workload), rows)
    model = save_model(SHAPES[workload.shape], workload.sequence_length, directory / "model")
    write_tensors(workload, rows, model, directory / "tensors")
    return Prepared(rows, directory / "tensors", model, workload)


def split_cores() -> tuple[int, tuple[int, ...]]:
    """The first core that this process may use trains; the others are everything else's."""
    core, *others = sorted(os.sched_getaffinity(0))
    return core, tuple(others or [core])


@contextmanager
def open_arm(name: str, cores: Sequence[int], cache: Path) -> Iterator[ChildProcess]:
    """Start an arm whose training runs on ``cores`` alone and wait for it; it is gone when the block ends."""
    python, launcher = sys.executable, list(TORCHRUN if name == "torchrun" else ())
    if name.startswith("trl"):
        python = str(make_trl_environment(cache))
    with tempfile.TemporaryDirectory(prefix="trn-", dir="/tmp", ignore_cleanup_errors=True) as directory:
        told = {"directory": directory, "cores": list(cores), "others": sorted(os.sched_getaffinity(0))}
        command = [python, *launcher, "-m", "benchmarks.training.arm", name, json.dumps(told)]
        child = ChildProcess(name, command, Path(directory) / "arm.log")
        try:
            child.wait_for_answer(OPEN_S, "to start")
            yield child
        finally:
            child.stop()


def run_once(child: ChildProcess, order: Order, warm_up: int = WARM_UP_STEPS) -> Run:
    """Train once and return the part after ``warm_up``; its CPU time is always that after the arms' own warm-up."""
    child.ask(asdict(order), RUN_S, "to warm up")
    before = child.cpu_s()
    child.wait_for_answer(RUN_S, "to train")
    cpu_s = child.cpu_s() - before
    return to_run(child.wait_for_answer(RUN_S, "to finish")["steps"], cpu_s, warm_up)


class Arms:
    """Arms that train in turns on one core, each run in a process of its own; one that fails is left out from then on.

    A process keeps the speed that its memory's layout gave it: on one machine ours, and the bare loop no less, took
    from 876 to 967 CPU milliseconds a step, by process. Runs of one process would all be on the same side of that.
    """

    def __init__(self, names: Sequence[str], cache: Path, stack: ExitStack) -> None:
        self.names = list(names)
        self.failures: list[str] = []
        self._cache = cache
        self._core, others = split_cores()
        os.sched_setaffinity(0, others)
        stack.callback(os.sched_setaffinity, 0, {self._core, *others})

    def run(self, name: str, order: Order) -> Run | None:
        """Train once; None when that failed."""
        try:
            with open_arm(name, [self._core], self._cache) as child:
                return run_once(child, order)
        except ArmFailed as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            self.failures.append(str(error).splitlines()[0])
            self.names = [each for each in self.names if each != name]
            return None

    def run_rounds(self, workload: Workload, rounds: dict[str, int], directory: Path) -> dict[str, list[Run]]:
        """Run each arm in its first so many rounds; returns the runs of those that failed in none, in their order."""
        runs: dict[str, list[Run]] = {name: [] for name in self.names}
        for number in range(max(rounds.values())):
            prepared = prepare(replace(workload, seed=number), directory / f"round-{number}")
            for name in order_of_round(self.names, number):
                if number < rounds[name] and (run := self.run(name, prepared.order(directory / f"{name}-{number}"))):
                    runs[name].append(run)
                    print(f"  round {number} {name}: {describe(run)}", flush=True)
        return {name: runs[name] for name in self.names}


def order_of_round(names: list[str], number: int) -> list[str]:
    """Return the names with those next to each other whose ratio should be known best, backwards every other time."""
    ordered = sorted(names, key=ORDER.index)
    return ordered[::-1] if number % 2 else ordered


def describe(run: Run) -> str:
    """Return one run's figures for the log."""
    return f"{run.tokens_per_s:,.0f} loss tokens/s, {run.cpu_s:.1f} CPU-s in {run.seconds:.1f} s"
