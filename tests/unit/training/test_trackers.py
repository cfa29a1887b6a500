"""TensorBoard's event file follows the metrics, and a tracker that is not installed is refused."""

from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from configs.errors import UserError
from configs.schema import Tracker
from training.job import StepMetrics, TrainJob
from training.metrics import MetricsLog
from training.trackers import check_trackers

JOB = TrainJob(name="student", files=(), tokenizer="", output_dir="")
LINE = StepMetrics(
    step=1,
    num_steps=9,
    epoch=0,
    loss=2.5,
    learning_rate=1e-3,
    grad_norm=1.0,
    loss_tokens=100,
    tokens_per_s=50.0,
    loss_tokens_per_s=25.0,
    seconds=4.0,
    data_wait_s=1.0,
    checkpoint_blocked_s=0.5,
    peak_memory_mib=7.0,
    time=1_700_000_000.0,
)


def read_scalars(path: Path) -> dict[str, list[tuple[int, float]]]:
    scalars: dict[str, list[tuple[int, float]]] = {}
    for event in EventFileLoader(str(path)).Load():
        for value in event.summary.value:
            scalars.setdefault(value.tag, []).append((event.step, value.tensor.float_val[0]))
    return scalars


def write(job: TrainJob, last_step: int, *steps: int) -> None:
    with MetricsLog(job, last_step) as log:
        for step in steps:
            log.append(replace(LINE, step=step, loss=10.0 - step))


def test_metrics_log_resumed_before_its_last_step_has_each_step_once(tmp_path: Path) -> None:
    job = replace(JOB, output_dir=str(tmp_path))
    write(job, 0, 1, 2, 3, 4)
    write(job, 2, 3, 4, 5)
    (events,) = (tmp_path / "tensorboard").iterdir()
    scalars = read_scalars(events)
    assert scalars["train/loss"] == [(step, 10.0 - step) for step in range(1, 6)]
    assert scalars["speed/data_wait_share"][0] == (1, 0.25)
    assert scalars["speed/checkpoint_blocked_s"][0] == (1, 0.5)
    assert not {"speed/mfu", "evaluation/evaluation_loss"} & scalars.keys()  # not known, not measured


def test_metrics_log_line_is_in_the_event_file_on_return(tmp_path: Path) -> None:
    with MetricsLog(replace(JOB, output_dir=str(tmp_path)), 0) as log:
        log.append(LINE)
        (events,) = (tmp_path / "tensorboard").iterdir()
        assert read_scalars(events)["train/loss"] == [(1, 2.5)]


def test_metrics_log_on_an_object_store_has_everything_when_it_is_closed(tmp_path: Path) -> None:
    fs = fsspec.filesystem("memory")
    try:
        write(replace(JOB, output_dir="memory://tracked/out"), 0, 1, 2)
        (events,) = fs.ls("/tracked/out/tensorboard", detail=False)
        fs.get_file(events, str(tmp_path / "events"))
        assert [step for step, _ in read_scalars(tmp_path / "events")["train/loss"]] == [1, 2]
    finally:
        fs.rm("/tracked", recursive=True)


def test_check_trackers_package_that_is_missing_is_named() -> None:
    check_trackers([Tracker.TENSORBOARD])
    with pytest.raises(UserError, match=r"training\.trackers names wandb, and the package wandb is not installed"):
        check_trackers([Tracker.TENSORBOARD, Tracker.WANDB])
