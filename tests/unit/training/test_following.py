"""What follows training from beside goes on after an error: progress, and the question whether to stop."""

import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.unit.training.tiny import make_job
from training.job import StepMetrics
from training.metrics import following_metrics
from training.trainer import Stopped, _check_placement, _stopping

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
