"""Where the curves of a training job are drawn beside ``metrics.jsonl``: TensorBoard, Weights & Biases, MLflow.

Rank 0 uses them. A job that is resumed goes on in the same run, and no step is there twice.
"""

import importlib.util
import logging
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from configs.errors import UserError
from configs.schema import Tracker
from training import storage
from training.job import StepMetrics, TrainJob

logger = logging.getLogger(__name__)

# An object store cannot append, so the whole file is sent again; its loss would cost nothing, as a resume rebuilds it.
_UPLOAD_SECONDS = 30.0

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
    tracker: Tracker, job: TrainJob, past: Sequence[StepMetrics]
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


class TensorBoard:
    """An event file in ``<output_dir>/tensorboard``, made anew from the lines that count whenever a job starts.

    So a resumed job has one file in which each step is there once, whatever a killed one had written.
    """

    def __init__(self, job: TrainJob, past: Sequence[StepMetrics]) -> None:
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

    def __init__(self, job: TrainJob, past: Sequence[StepMetrics]) -> None:
        import wandb  # installed by whoever names it

        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "stillhouse"),
            id=job.fingerprint()[:16],
            name=job.name,
            config=job.identity(),
            resume="allow",
            dir=None if "://" in job.output_dir else job.output_dir,
        )
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

    def __init__(self, job: TrainJob, past: Sequence[StepMetrics]) -> None:
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
            for key, value in job.identity().items():
                self._client.log_param(self._run_id, key, str(value)[:500])
        history = self._client.get_metric_history(self._run_id, "train/loss")
        self._last_step = max((metric.step for metric in history), default=0)
        for metrics in past:
            self.log(metrics)

    def log(self, metrics: StepMetrics) -> None:
        """Add one line, unless the run has its step already."""
        if metrics.step <= self._last_step:
            return
        time_ms = int(metrics.time * 1000)
        entities = [
            self._mlflow.entities.Metric(name, value, time_ms, metrics.step)
            for name, value in name_scalars(metrics).items()
        ]
        try:
            self._client.log_batch(self._run_id, metrics=entities)
        except self._mlflow.exceptions.MlflowException as error:
            # A server that is away for a while must not end a training; metrics.jsonl has the line.
            logger.warning("MLflow did not take step %d: %s", metrics.step, error)

    def close(self) -> None:
        """Mark the run as ended; a resumed job opens it again."""
        self._client.set_terminated(self._run_id)
