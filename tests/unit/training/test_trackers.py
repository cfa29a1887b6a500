"""TensorBoard's event file follows the metrics, an outage of W&B or MLflow costs no line, a refused key is told."""

import json
import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import fsspec
import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from configs.errors import UserError
from configs.schema import Tracker, TrainingConfig
from training.job import StepMetrics, TrainJob
from training.metrics import MetricsLog
from training.trackers import check_trackers

pytestmark = pytest.mark.unit

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


class Service:
    """What is behind W&B or MLflow: raises ``outage`` while there is one, and else takes a line as ``steps``."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.outage: Exception | None = None
        self.is_answer_lost = False

    def answer(self) -> None:
        if self.outage is not None:
            raise self.outage

    def take(self, step: int) -> None:
        self.answer()
        self.steps.append(step)
        if self.is_answer_lost:
            self.is_answer_lost = False
            raise ConnectionError("no answer")


class FakeWandb:
    """W&B's package, whose process of its own keeps a run's id after an ``init`` that failed."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._is_in_use = False

    def init(self, **settings: Any) -> "FakeRun":
        assert not self._is_in_use
        self._is_in_use = True
        self._service.answer()
        return FakeRun(self._service)

    def teardown(self) -> None:
        self._is_in_use = False


class FakeRun:
    """A run of W&B."""

    def __init__(self, service: Service) -> None:
        self._service = service

    @property
    def step(self) -> int:
        return max(self._service.steps, default=-1) + 1

    def log(self, scalars: dict[str, float], step: int) -> None:
        assert "train/loss" in scalars
        self._service.take(step)

    def finish(self) -> None:
        pass


class FakeClient:
    """MLflow's client, of an experiment that has a run."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def get_experiment_by_name(self, name: str) -> SimpleNamespace:
        self._service.answer()
        return SimpleNamespace(experiment_id="1")

    def search_runs(self, experiments: list[str], **query: Any) -> list[SimpleNamespace]:
        return [SimpleNamespace(info=SimpleNamespace(run_id="2"))]

    def update_run(self, run_id: str, status: str) -> None:
        self._service.answer()

    def get_metric_history(self, run_id: str, key: str) -> list[SimpleNamespace]:
        self._service.answer()
        return [SimpleNamespace(step=step) for step in self._service.steps]

    def log_batch(self, run_id: str, metrics: list[SimpleNamespace] = [], params: list[Any] = []) -> None:  # noqa: B006
        if metrics:
            (step,) = {metric.step for metric in metrics}
            self._service.take(step)

    def set_terminated(self, run_id: str) -> None:
        self._service.answer()


@pytest.fixture
def service(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Service:
    """Stand for the package that the test's ``tracker`` names."""
    service, package = Service(), ModuleType(request.getfixturevalue("tracker"))
    parts: dict[str, Callable[..., Any]]
    if package.__name__ == Tracker.WANDB:
        wandb = FakeWandb(service)
        parts = {"init": wandb.init, "teardown": wandb.teardown}
    else:
        parts = {"MlflowClient": lambda: FakeClient(service)}
        package.__dict__["entities"] = SimpleNamespace(
            Metric=lambda key, value, timestamp, step: SimpleNamespace(step=step), Param=lambda key, value: None
        )
    package.__dict__.update(parts)
    monkeypatch.setitem(sys.modules, package.__name__, package)
    return service


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


def test_check_trackers_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    check_trackers([Tracker.TENSORBOARD])
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"training\.trackers names wandb, and the package wandb is not installed"):
        check_trackers([Tracker.TENSORBOARD, Tracker.WANDB])


def tracked(output_dir: Path, tracker: Tracker) -> TrainJob:
    return replace(JOB, output_dir=str(output_dir), training=TrainingConfig(trackers=(tracker,)))


def steps_in_file(output_dir: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (output_dir / "metrics.jsonl").read_text().splitlines()]


SERVICES = pytest.mark.parametrize("tracker", [Tracker.WANDB, Tracker.MLFLOW])


@SERVICES
@pytest.mark.parametrize("first_away", [0, 1, 3])
@pytest.mark.parametrize("is_back", [True, False])
def test_metrics_log_outage_is_one_warning_and_costs_no_line(
    tmp_path: Path,
    tracker: Tracker,
    service: Service,
    first_away: int,
    is_back: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Away at the start, in the middle, and when the last line comes."""
    service.outage = None if first_away else ConnectionError("no route to host")
    with MetricsLog(tracked(tmp_path, tracker), 0) as log:
        for step in (1, 2, 3):
            if step == first_away:
                service.outage = ConnectionError("no route to host")
            log.append(replace(LINE, step=step))
        if is_back:
            service.outage = None
    assert steps_in_file(tmp_path) == [1, 2, 3]
    assert service.steps == ([1, 2, 3] if is_back else [1, 2, 3][: max(0, first_away - 1)])
    (warning,) = (record for record in caplog.records if record.levelno >= logging.WARNING)
    assert f"{tracker} does not take metrics" in warning.getMessage()
    assert "no route to host" in warning.getMessage()


@SERVICES
def test_metrics_log_after_an_outage_a_resume_sends_what_the_tracker_lacks(
    tmp_path: Path, tracker: Tracker, service: Service
) -> None:
    job = tracked(tmp_path, tracker)
    with MetricsLog(job, 0) as log:
        log.append(LINE)
        service.outage = ConnectionError("no route to host")
        log.append(replace(LINE, step=2))
    service.outage = None
    with MetricsLog(job, 2) as log:
        log.append(replace(LINE, step=3))
    assert service.steps == [1, 2, 3]


@pytest.mark.parametrize("tracker", [Tracker.MLFLOW])
def test_metrics_log_line_whose_answer_was_lost_is_not_sent_twice(
    tmp_path: Path, tracker: Tracker, service: Service
) -> None:
    with MetricsLog(tracked(tmp_path, tracker), 0) as log:
        service.is_answer_lost = True
        for step in (1, 2):
            log.append(replace(LINE, step=step))
    assert service.steps == [1, 2]


@SERVICES
@pytest.mark.parametrize(
    "answer",
    [
        "No API key configured. Use `wandb login` to log in.",
        "WANDB_API_KEY invalid: API key must have 40+ characters, has 3.",
        "Failed to get resume status for run 1: returned error 401: {}",
        "API request to endpoint /api failed with error code 403 != 200. Response body: ''",
        "PERMISSION_DENIED: Permission denied",
    ],
)
def test_metrics_log_refused_key_is_told_before_training(
    tmp_path: Path, tracker: Tracker, service: Service, answer: str
) -> None:
    """As wandb 0.31 and mlflow 3.17 say it."""
    service.outage = RuntimeError(f"{answer}\nmore")
    with pytest.raises(UserError, match=rf"^training\.trackers names {tracker}, .*, or take {tracker} off the list$"):
        MetricsLog(tracked(tmp_path, tracker), 0)


def test_metrics_log_resumed_with_mlflow_has_each_step_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    job = tracked(tmp_path, Tracker.MLFLOW)
    write(job, 0, 1, 2, 3, 4)
    write(job, 2, 3, 4, 5)
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("stillhouse").experiment_id])
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "train/loss")] == [1, 2, 3, 4, 5]
    assert (run.info.status, run.data.params["tokenizer"]) == ("FINISHED", "")


def test_metrics_log_with_wandb_offline_writes_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    write(tracked(tmp_path, Tracker.WANDB), 0, 1, 2)
    (run,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert b"train/loss" in run.read_bytes()
