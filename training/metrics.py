"""The metrics of a job: written by rank 0 as training goes, read by whoever follows ``metrics.jsonl``."""

import json
import logging
import resource
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from types import TracebackType
from typing import Final, Self, TypeVar, cast

import torch

from training import storage
from training.job import StepMetrics, TrainJob
from training.trackers import OpenTracker

T = TypeVar("T")

logger = logging.getLogger(__name__)

_END: Final = object()


class MetricsFile:
    """``<output_dir>/metrics.jsonl`` with each step at most once, also after a resume.

    On a local disk lines are appended; object stores cannot append, so there the file is replaced as a whole with
    each line, which stays small: one line every ``log_every`` steps.
    """

    def __init__(self, output_dir: str, last_step: int) -> None:
        """Open the file, dropping lines after ``last_step``, which will be taken again."""
        self._uri = storage.join(output_dir, "metrics.jsonl")
        self._lines = [line for line in storage.read_lines(self._uri) if json.loads(line)["step"] <= last_step]
        storage.write_text(self._uri, "".join(line + "\n" for line in self._lines))

    @property
    def lines(self) -> list[StepMetrics]:
        """What the file holds."""
        return [StepMetrics(**json.loads(line)) for line in self._lines]

    def append(self, metrics: StepMetrics) -> None:
        """Add one line, visible to readers on return."""
        line = json.dumps(asdict(metrics))
        self._lines.append(line)
        if not storage.append_line(self._uri, line):
            storage.write_text(self._uri, "".join(line + "\n" for line in self._lines))


class MetricsLog:
    """The file and the trackers that the job names; leaving the ``with`` block closes them."""

    def __init__(self, job: TrainJob, last_step: int) -> None:
        """Open all at ``last_step``; what was written of later steps is forgotten. UserError of a tracker's key."""
        self._file = MetricsFile(job.output_dir, last_step)
        past = self._file.lines
        self._trackers = [OpenTracker(tracker, job, past) for tracker in job.training.trackers]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for tracker in self._trackers:
            tracker.close()

    def append(self, metrics: StepMetrics) -> None:
        """Add one line everywhere."""
        self._file.append(metrics)
        for tracker in self._trackers:
            tracker.log(metrics)


def follow_metrics(output_dir: str, num_seen: int, on_metrics: Callable[[StepMetrics], None]) -> int:
    """Hand the lines after the first ``num_seen`` to ``on_metrics``; return how many there are now."""
    lines = storage.read_lines(storage.join(output_dir, "metrics.jsonl"))
    for line in lines[num_seen:]:
        on_metrics(StepMetrics(**json.loads(line)))
    return len(lines)


@contextmanager
def following_metrics(
    output_dirs: Sequence[str], on_metrics: Callable[[int, StepMetrics], None], every_s: float
) -> Iterator[None]:
    """Hand new lines of several jobs to ``on_metrics`` while the block runs, with the place of their directory.

    It is called on a thread, every ``every_s`` seconds and once more at the end.
    """
    done = threading.Event()

    def follow() -> None:
        num_seen = [0] * len(output_dirs)
        is_last, problem = False, ""
        while not is_last:
            is_last = done.wait(every_s)
            for i, output_dir in enumerate(output_dirs):
                try:
                    num_seen[i] = follow_metrics(output_dir, num_seen[i], partial(on_metrics, i))
                except Exception as error:  # a storage may not answer once; progress goes on with the next look
                    if problem != (problem := repr(error)):
                        logger.warning(
                            "metrics in %s could not be followed, and are tried again: %s", output_dir, problem
                        )

    thread = threading.Thread(target=follow, name="follow-metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def peak_memory_mib(device: torch.device) -> float:
    """Return the peak memory of this process: allocated on a GPU, resident on a CPU (MiB)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


@dataclass(frozen=True, slots=True)
class Rates:
    """What happened between two lines of metrics, over all workers; waiting is this worker's."""

    tokens: int
    loss_tokens: int
    seconds: float
    data_wait_s: float
    checkpoint_blocked_s: float
    flops: float


class RateWindow:
    """Counts tokens and time between two lines of metrics."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._started = time.monotonic()
        self._tokens = self._loss_tokens = 0
        self._flops = 0.0
        self._data_wait_s = self._checkpoint_blocked_s = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the block's time as waiting for rows."""
        started = time.monotonic()
        yield
        self._data_wait_s += time.monotonic() - started

    def waiting_for(self, items: Iterator[T]) -> Iterator[T]:
        """Yield ``items``, and count the time until each of them is there as waiting for rows."""
        while True:
            with self.waiting():
                item = next(items, _END)
            if item is _END:
                return
            yield cast(T, item)

    @contextmanager
    def blocked(self) -> Iterator[None]:
        """Count the block's time as standing still for a checkpoint."""
        started = time.monotonic()
        yield
        self._checkpoint_blocked_s += time.monotonic() - started

    def add(self, tokens: int, loss_tokens: int, flops: float) -> None:
        """Count one step."""
        self._flops += flops
        self._tokens += tokens
        self._loss_tokens += loss_tokens

    def close(self) -> Rates:
        """Return the counts since the last call and start anew."""
        seconds = time.monotonic() - self._started
        rates = Rates(
            self._tokens, self._loss_tokens, seconds, self._data_wait_s, self._checkpoint_blocked_s, self._flops
        )
        self._reset()
        return rates
