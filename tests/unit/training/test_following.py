"""What follows training from beside goes on after an error: progress, and the question whether to stop."""

import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.train import ControllerError, FailureConfig
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError
from ray.train.v2._internal.execution.callback_manager import CallbackManager
from ray.train.v2._internal.execution.controller.state import InitializingState, ReschedulingState, RunningState
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision

from tests.unit.training.tiny import make_job
from training.job import StepMetrics
from training.metrics import following_metrics
from training.trainer import Stopped, WaitWatch, _check_placement, _NotPlaced, _StopFile, _stopping

pytestmark = pytest.mark.unit

LINE = (
    '{"step": %d, "num_steps": 2, "epoch": 0, "loss": 1.0, "learning_rate": 0.1, "grad_norm": 1.0, "loss_tokens": 1, '
    '"tokens_per_s": 1.0, "loss_tokens_per_s": 1.0, "seconds": 1.0, "data_wait_s": 0.0, "checkpoint_blocked_s": 0.0, '
    '"peak_memory_mib": 1.0, "time": 1.0}\n'
)


def test_progress_goes_on_after_an_error_of_whoever_is_told(tmp_path: Path) -> None:
    told, has_ended = list[int](), threading.Event()

    def tell(_: int, metrics: StepMetrics) -> None:
        told.append(metrics.step)
        if len(told) == 1:
            raise OSError("no answer")
        if metrics.step == 2:
            has_ended.set()

    (tmp_path / "metrics.jsonl").write_text(LINE % 1 + LINE % 2)
    with following_metrics([str(tmp_path)], tell, 0.01):
        assert has_ended.wait(30)
    assert told == [1, 1, 2]


def test_question_whether_to_stop_outlives_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.trainer._LOOK_FOR_STOP_SECONDS", 0.01)
    answers = iter([OSError("no answer"), False, True])

    asked = threading.Event()

    def should_stop() -> bool:
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        if answer:
            asked.set()
        return answer

    job = make_job(tmp_path)
    with _stopping([job], should_stop) as is_told:
        assert asked.wait(30)
    assert is_told()


@pytest.fixture
def full_cluster(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A cluster without a place for anyone; returns the seconds of each wait for one."""
    waits = list[float]()
    group = SimpleNamespace(wait=lambda seconds: waits.append(seconds) is not None)
    monkeypatch.setattr("training.trainer.placement_group", lambda *_, **__: group)
    monkeypatch.setattr("training.trainer.remove_placement_group", lambda _: None)
    return waits


def test_wait_for_a_place_ends_when_training_is_to_stop(tmp_path: Path, full_cluster: list[float]) -> None:
    with pytest.raises(Stopped):
        _check_placement(make_job(tmp_path), 600, {}, lambda: len(full_cluster) == 3)
    assert max(full_cluster) <= 2


class Waiting:
    """A watch of 60 s as Ray Train's controller calls it, with a clock that a test sets."""

    def __init__(self, output_dir: Path) -> None:
        self.now = 0.0
        self._callbacks = CallbackManager([WaitWatch(str(output_dir), 60.0, lambda: self.now)])

    def enter(self, state: object, now: float) -> None:
        self.now = now
        self._callbacks.invoke("after_controller_state_update", InitializingState(), state)


RESCHEDULING = ReschedulingState(training_failed_error=ControllerError(OSError("no place")))


def test_workers_without_a_place_end_the_run_at_the_deadline_and_ray_does_not_try_again(tmp_path: Path) -> None:
    waiting = Waiting(tmp_path)
    waiting.enter(RESCHEDULING, 0)
    waiting.enter(RESCHEDULING, 59)
    with pytest.raises(ControllerError) as raised:
        waiting.enter(RESCHEDULING, 60)
    assert isinstance(raised.value.controller_failure, _NotPlaced)
    policy = DefaultFailurePolicy(FailureConfig(max_failures=3))
    assert policy.make_decision(raised.value) is FailureDecision.RAISE


def test_workers_that_cannot_be_started_end_the_run_with_what_they_failed_with(tmp_path: Path) -> None:
    waiting = Waiting(tmp_path)
    failed = ControllerError(WorkerGroupStartupFailedError("no module named training"))
    waiting.enter(ReschedulingState(training_failed_error=failed), 0)
    with pytest.raises(ControllerError) as raised:
        waiting.enter(ReschedulingState(training_failed_error=failed), 60)
    assert str(raised.value.controller_failure) == "no module named training"
    waiting = Waiting(tmp_path)
    waiting.enter(ReschedulingState(training_failed_error=failed), 0)
    with pytest.raises(ControllerError) as raised:
        waiting.enter(RESCHEDULING, 60)
    assert str(raised.value.controller_failure) == ""


def test_each_wait_for_a_place_has_a_deadline_of_its_own(tmp_path: Path) -> None:
    waiting = Waiting(tmp_path)
    waiting.enter(RESCHEDULING, 50)
    waiting.enter(RunningState(), 100)
    waiting.enter(RESCHEDULING, 1000)
    waiting.enter(RESCHEDULING, 1059)


def test_stop_is_heeded_while_no_worker_has_a_place(tmp_path: Path) -> None:
    waiting = Waiting(tmp_path)
    _StopFile(str(tmp_path)).write()
    with pytest.raises(ControllerError) as raised:
        waiting.enter(RESCHEDULING, 0)
    assert isinstance(raised.value.controller_failure, Stopped)
