"""What the accuracies say together."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from cluster.context import RunContext
from cluster.phases.evaluate import _answer_all, gap_closed
from cluster.progress import Progress
from cluster.run_dir import RunDir
from configs.errors import BudgetReached
from configs.schema import Device, EvaluationConfig
from tests.unit.configs.trees import make_config
from tests.unit.training.tiny import make_job

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("teacher", "before", "after", "gap"),
    [
        (1.0, 0.0, 0.9, 0.9),
        (0.9, 0.1, 0.5, 0.5),
        (0.8, 0.4, 0.4, 0.0),
        (0.8, 0.4, 0.8, 1.0),
        (0.8, 0.4, 0.9, 1.25),  # better than its teacher
        (0.8, 0.4, 0.2, -0.5),  # worse than it was
    ],
)
def test_gap_closed_is_the_share_of_the_way_to_the_teacher(
    teacher: float, before: float, after: float, gap: float
) -> None:
    assert gap_closed(teacher, before, after) == pytest.approx(gap)


@pytest.mark.parametrize(("teacher", "before"), [(0.5, 0.5), (0.4, 0.5), (0.0, 0.0)])
def test_gap_closed_without_a_gap_is_none(teacher: float, before: float) -> None:
    assert gap_closed(teacher, before, 0.7) is None


def test_budget_is_heeded_while_students_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(run_dir=str(tmp_path / "run"), budget__max_usd=5.0)
    ctx = RunContext(config, RunDir.of(config), Progress(config.name, RunDir.of(config)))
    monkeypatch.setattr(RunContext, "session", SimpleNamespace(device=lambda _: Device.CPU))
    monkeypatch.setattr(ray, "remote", lambda **_: lambda _: SimpleNamespace(remote=lambda *_: "answers"))
    looks = list[float]()

    def wait(refs: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        looks.append(timeout)
        if len(looks) == 3:
            monkeypatch.setattr(ctx.budget, "_words", lambda: "budget.max_usd is reached")
        assert len(looks) <= 3
        return [], refs

    monkeypatch.setattr(ray, "wait", wait)
    evaluation = EvaluationConfig.model_construct(max_tokens=1, batch_size=1)
    with pytest.raises(BudgetReached, match="max_usd"):
        list(_answer_all(ctx, evaluation, {"student_before": (make_job(tmp_path), None)}, ["1+1="]))
    assert len(looks) == 3
    assert max(looks) <= 5
