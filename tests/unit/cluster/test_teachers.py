"""The wait for a teacher's first replica."""

from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.context import RunContext
from cluster.progress import Progress
from cluster.run_dir import RunDir
from cluster.teachers import wait_for_teacher
from configs.errors import BudgetReached
from tests.unit.configs.trees import make_config

pytestmark = pytest.mark.unit


def test_budget_is_heeded_while_a_teacher_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(run_dir=str(tmp_path), budget__max_usd=5.0)
    ctx = RunContext(config, RunDir.of(config), Progress(config.name, RunDir.of(config)))

    def wait_until_ready(_: str, __: float, on_wait: Callable[[str], None]) -> None:
        on_wait("loading")
        monkeypatch.setattr(ctx.budget, "_words", lambda: "budget.max_usd is reached")
        on_wait("loading")

    monkeypatch.setattr("services.deployment.wait_until_ready", wait_until_ready)
    with pytest.raises(BudgetReached, match="max_usd"):
        wait_for_teacher(ctx, config.main_teacher)
