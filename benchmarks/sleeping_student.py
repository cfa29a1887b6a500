"""A stand-in for training: the same job, commits, checkpoints and words of Ray Train, but a step sleeps.

`training.trainer` runs it in place of its own worker, so all around the loop is what a run has.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

from training import storage
from training.commits import CommitLog
from training.job import StepMetrics, TrainJob, TrainResult
from training.metrics import MetricsFile
from training.output import claim_output_dir, write_result
from training.parallel import World

POLL_S = 0.1
GROUPS, STEP = "groups.jsonl", "slept.json"


def sleeping_worker(config: dict[str, Any], row_s: float = 0.1) -> dict[str, Any]:
    """Train in a Ray Train worker; a row takes one worker ``row_s`` seconds."""
    from training.parallel import joined_world
    from training.trainer import _is_noticed, _StopFile

    job = TrainJob.from_json(config["jobs"][0])
    with joined_world(job.device) as world:
        result = take_steps(job, world, partial(_is_noticed, _StopFile(job.output_dir)), row_s)
    return {"preempted": "stopped, with a checkpoint"} if result is None else {"results": [asdict(result)]}


def take_steps(job: TrainJob, world: World, is_noticed: Callable[[], bool], row_s: float) -> TrainResult | None:
    """Take the steps left; None when told to stop. Rank 0 decides for all, which sleep as long."""
    batch, num_steps = job.training.batch_sequences or 1, job.training.max_steps or 1
    step = (storage.read_json(storage.join(job.output_dir, STEP)) or 0) if world.rank == 0 else 0
    step, up_at, line_at, waited_s = world.broadcast(step), time.time(), time.time(), 0.0
    rows, metrics = _Rows(job), None
    if world.rank == 0:
        claim_output_dir(job)
        metrics = MetricsFile(job.output_dir, step)
    decision = ""
    while step < num_steps:
        if world.rank == 0:
            decision = "stop" if is_noticed() else "step" if rows.ready() >= (step + 1) * batch else "wait"
        decision = world.broadcast(decision)
        if decision == "stop":
            break
        if decision == "wait":
            time.sleep(POLL_S)
            waited_s += POLL_S
            continue
        time.sleep(batch * row_s / world.size)
        step += 1
        if metrics is not None:
            now = time.time()
            storage.write_text(storage.join(job.output_dir, STEP), json.dumps(step))
            metrics.append(_describe(step, num_steps, now - line_at, waited_s, now))
            line_at, waited_s = now, 0.0
    result = _result(job, step) if step == num_steps else None
    if world.rank == 0:
        _note_group(job, {"up": up_at, "down": time.time(), "size": world.size})
        if result is not None:
            write_result(job, result)
    world.barrier()
    return result


class _Rows:
    """How many rows may be learnt by now: whole windows of a table that grows, or all of those that are sealed."""

    def __init__(self, job: TrainJob) -> None:
        self._window = job.training.packing_window_rows
        self._log = None if job.commits is None else CommitLog(job.commits)
        self._num_files = len(job.files) if job.commits is None else job.commits.num_files
        self._files = [file.num_rows for file in job.files]

    def ready(self) -> int:
        if self._log is not None and len(self._files) < self._num_files:
            self._files += [each.file.num_rows for each in self._log.read_new()]
        rows = sum(self._files)
        return rows if len(self._files) == self._num_files else rows // self._window * self._window


def read_groups(output_dir: str) -> list[dict[str, Any]]:
    """When each group of workers could take a step, when it ended (seconds since 1970), and its size."""
    return [json.loads(line) for line in storage.read_lines(storage.join(output_dir, GROUPS))]


def _note_group(job: TrainJob, group: dict[str, Any]) -> None:
    groups = [*read_groups(job.output_dir), group]
    storage.write_text(storage.join(job.output_dir, GROUPS), "".join(json.dumps(each) + "\n" for each in groups))


def _describe(step: int, num_steps: int, seconds: float, waited_s: float, now: float) -> StepMetrics:
    unknown = {"loss": 0.0, "learning_rate": 0.0, "grad_norm": 0.0, "loss_tokens": 0, "tokens_per_s": 0.0}
    return StepMetrics(
        step=step,
        num_steps=num_steps,
        epoch=0,
        loss_tokens_per_s=0.0,
        seconds=seconds,
        data_wait_s=waited_s,
        checkpoint_blocked_s=0.0,
        peak_memory_mib=0.0,
        time=now,
        **unknown,
    )


def _result(job: TrainJob, steps: int) -> TrainResult:
    return TrainResult(
        num_steps=steps,
        loss_tokens=0,
        final_loss=0.0,
        evaluation_loss=None,
        rows=0,
        evaluation_rows=0,
        overlong_dropped=0,
        packing_fill=1.0,
        seconds=0.0,
        hf_dir="",
    )
