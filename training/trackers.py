"""Where the curves of a training job are drawn beside ``metrics.jsonl``: TensorBoard, Weights & Biases, MLflow.

Rank 0 uses them. A job that is resumed goes on in the same run, and no step is there twice. An outage of a tracker is
one warning: training goes on, and the lines are sent when the tracker is back.
"""

import importlib.util
import logging
import os
import re
import socket
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from configs.errors import UserError
from configs.schema import Tracker
from training import storage
from training.job import StepMetrics, TrainJob

logger = logging.getLogger(__name__)

# An object store cannot append, so the whole file is sent again; its loss would cost nothing, as a resume rebuilds it.
_UPLOAD_SECONDS = 30.0

# A try that failed is repeated after this long and a hundred times what it took, so that an outage costs training a
# hundredth of its time at most.
_RETRY_SECONDS = 60.0
_RETRY_FACTOR = 100.0

# What W&B and MLflow say where the key is missing, wrong, or may not write; they have no type of their own for it.
_REFUSED = re.compile(r"API key|error (code )?40[13]\b|UNAUTHENTICATED|PERMISSION_DENIED")
_KEYS = {
    Tracker.WANDB: "set WANDB_API_KEY (`wandb login`)",
    Tracker.MLFLOW: "set MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
}

# Left alone, MLflow tries for 16 minutes while a server does not answer, and W&B waits at its end until one does.
_PATIENCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "WANDB_INIT_TIMEOUT": "30",
    "WANDB_FINISH_TIMEOUT": "60",
}

_GROUPS = {
    "train": ("loss", "grad_norm", "learning_rate", "epoch", "loss_tokens"),
    "evaluation": ("evaluation_loss",),
    "speed": ("tokens_per_s", "loss_tokens_per_s", "mfu", "data_wait_share", "checkpoint_blocked_s", "peak_memory_mib"),
}


def check_trackers(trackers: Sequence[Tracker]) -> None:
    """Raise UserError when a tracker is named whose package is not there."""
    for tracker in trackers:
        if importlib.util.find_spec(str(tracker)) is None:
            raise UserError(
                f"training.trackers names {tracker}, and the package {tracker} is not installed where the training "
                f"workers run; install it there, or take {tracker} off the list"
            )


def open_tracker(
    tracker: Tracker, job: TrainJob, past: Iterable[StepMetrics]
) -> "TensorBoard | WeightsAndBiases | MLflow":
    """Return the tracker, which has the lines ``past`` already or takes them up here."""
    match tracker:
        case Tracker.TENSORBOARD:
            return TensorBoard(job, past)
        case Tracker.WANDB:
            return WeightsAndBiases(job, past)
        case Tracker.MLFLOW:
            return MLflow(job, past)


def name_scalars(metrics: StepMetrics) -> dict[str, float]:
    """Return what is drawn of one line, under ``group/name``.

    >>> name_scalars(StepMetrics(step=1, loss=2.5, seconds=4.0, data_wait_s=1.0, ...))  # doctest: +SKIP
    {'train/loss': 2.5, ..., 'speed/data_wait_share': 0.25, ...}
    """
    values = asdict(metrics) | {"data_wait_share": metrics.data_wait_s / metrics.seconds}
    named = {f"{group}/{name}": values[name] for group, names in _GROUPS.items() for name in names}
    return {name: float(value) for name, value in named.items() if value is not None}


class OpenTracker:
    """A tracker whose outages training outlives: what it did not take is kept here and sent again."""

    def __init__(self, tracker: Tracker, job: TrainJob, past: Iterable[StepMetrics]) -> None:
        """Open it with the lines ``past``; UserError when it refuses the key."""
        self._name, self._job = tracker, job
        self._tracker: TensorBoard | WeightsAndBiases | MLflow | None = None
        self._waiting = deque(past)
        self._is_away, self._next_try = False, 0.0
        for name, value in _PATIENCE.items():
            os.environ.setdefault(name, value)  # theirs to read, and the user's to choose
        error, key = self._send(), _KEYS.get(tracker)
        if error is not None and key is not None and _REFUSED.search(str(error)):
            raise UserError(
                f"training.trackers names {tracker}, and it refuses its key ({_shown(error)}); {key}, or take "
                f"{tracker} off the list"
            ) from error

    def log(self, metrics: StepMetrics) -> None:
        """Add one line, now or when the tracker is back."""
        self._waiting.append(metrics)
        if time.monotonic() >= self._next_try:
            self._send()

    def close(self) -> None:
        """Send what is left, if the tracker takes it now; the job's next start sends the rest."""
        self._send(is_last=True)

    def _send(self, *, is_last: bool = False) -> Exception | None:
        started = time.monotonic()
        try:
            if self._tracker is None:
                self._tracker = open_tracker(self._name, self._job, self._waiting)
                self._waiting.clear()
            while self._waiting:
                self._tracker.log(self._waiting[0])
                self._waiting.popleft()
            if is_last:
                self._tracker.close()
        except Exception as error:  # whatever a service and what it is reached by raise; training is worth more
            if not self._is_away:
                logger.warning(
                    "%s does not take metrics, which are in metrics.jsonl and are sent later: %s",
                    self._name,
                    _shown(error),
                )
            self._is_away = True
            now = time.monotonic()
            self._next_try = now + max(_RETRY_SECONDS, _RETRY_FACTOR * (now - started))
            return error
        if self._is_away:
            logger.info("%s takes metrics again", self._name)
        self._is_away = False
        return None


def _shown(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]


class TensorBoard:
    """An event file in ``<output_dir>/tensorboard``, made anew from the lines that count whenever a job starts.

    So a resumed job has one file in which each step is there once, whatever a killed one had written.
    """

    def __init__(self, job: TrainJob, past: Iterable[StepMetrics]) -> None:
        # Imported here: who only checks what is installed does without.
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = Event, Summary
        directory = storage.join(job.output_dir, "tensorboard")
        outdated = storage.list_names(directory)
        # TensorBoard takes files by this prefix and in the order of their names.
        self._file = storage.GrowingFile(
            storage.join(directory, f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}"), _UPLOAD_SECONDS
        )
        self._records = RecordWriter(self._file)
        self._records.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
        for metrics in past:
            self.log(metrics)
        for name in outdated:
            storage.remove_tree(storage.join(directory, name))

    def log(self, metrics: StepMetrics) -> None:
        """Add one line."""
        values = [self._summary.Value(tag=tag, simple_value=value) for tag, value in name_scalars(metrics).items()]
        event = self._event(wall_time=metrics.time, step=metrics.step, summary=self._summary(value=values))
        self._records.write(event.SerializeToString())
        self._records.flush()

    def close(self) -> None:
        """Write what is left."""
        self._records.close()


class WeightsAndBiases:
    """One run a job, in the project of ``WANDB_PROJECT`` or ``stillhouse``."""

    def __init__(self, job: TrainJob, past: Iterable[StepMetrics]) -> None:
        import wandb  # installed by whoever names it

        try:
            self._run: Any = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "stillhouse"),
                id=job.fingerprint()[:16],
                name=job.name,
                config=job.identity(),
                resume="allow",
                dir=None if "://" in job.output_dir else job.output_dir,
            )
        except Exception:
            wandb.teardown()  # its service would refuse the next try, as the run's id were in use
            raise
        for metrics in past:
            self.log(metrics)

    def log(self, metrics: StepMetrics) -> None:
        """Add one line, unless the run has its step already, which it would refuse."""
        if metrics.step >= self._run.step:
            self._run.log(name_scalars(metrics), step=metrics.step)

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()


class MLflow:
    """One run a job, in the experiment of ``MLFLOW_EXPERIMENT_NAME`` or ``stillhouse``."""

    def __init__(self, job: TrainJob, past: Iterable[StepMetrics]) -> None:
        import mlflow  # installed by whoever names it

        self._mlflow: Any = mlflow
        self._client = mlflow.MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "stillhouse")
        experiment = self._client.get_experiment_by_name(name)
        experiment_id = self._client.create_experiment(name) if experiment is None else experiment.experiment_id
        tag = job.fingerprint()[:16]
        found = self._client.search_runs([experiment_id], filter_string=f"tags.stillhouse_job = '{tag}'", max_results=1)
        if found:
            self._run_id = found[0].info.run_id
            self._client.update_run(self._run_id, status="RUNNING")
        else:
            tags = {"stillhouse_job": tag}
            self._run_id = self._client.create_run(experiment_id, tags=tags, run_name=job.name).info.run_id
        # Again on a resume: an outage may have come between, and equal values are no change.
        params = [mlflow.entities.Param(key, str(value)[:500]) for key, value in job.identity().items()]
        self._client.log_batch(self._run_id, params=params)
        self._last_step: int | None = None
        for metrics in past:
            self.log(metrics)

    def log(self, metrics: StepMetrics) -> None:
        """Add one line, unless the run has its step already."""
        if self._last_step is None:
            history = self._client.get_metric_history(self._run_id, "train/loss")
            self._last_step = max((metric.step for metric in history), default=0)
        if metrics.step <= self._last_step:
            return
        self._last_step = None  # where no answer comes, the run may have the line or not
        time_ms = int(metrics.time * 1000)
        entities = [
            self._mlflow.entities.Metric(name, value, time_ms, metrics.step)
            for name, value in name_scalars(metrics).items()
        ]
        self._client.log_batch(self._run_id, metrics=entities)
        self._last_step = metrics.step

    def close(self) -> None:
        """Mark the run as ended; a resumed job opens it again."""
        self._client.set_terminated(self._run_id)
