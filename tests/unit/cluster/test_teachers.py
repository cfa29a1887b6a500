"""How teachers are deployed, and what the driver waits for: a first replica, and what that says of its engine."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.context import RunContext
from cluster.progress import Progress
from cluster.run_dir import RunDir
from cluster.teachers import read_engine, start_teachers, wait_for_teacher
from configs.errors import BudgetReached, DeadlineExceeded
from configs.schema import Device
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


class SilentHandle:
    """As a deployment handle: no replica takes the call."""

    @property
    def describe(self) -> "SilentHandle":
        return self

    def remote(self) -> "SilentHandle":
        return self

    def result(self, timeout_s: float) -> Any:
        raise TimeoutError(timeout_s)


def test_teacher_that_does_not_describe_its_engine_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(run_dir=str(tmp_path), deadlines__request=7.0)
    ctx = RunContext(config, RunDir.of(config), Progress(config.name, RunDir.of(config)))
    monkeypatch.setattr("services.deployment.describe_teacher", lambda _: "1 RUNNING; all is well")
    handle: Any = SilentHandle()
    with pytest.raises(
        DeadlineExceeded, match=r"in 7 s \(deadlines.request\), though .* ready: 1 RUNNING; all is well"
    ):
        read_engine(ctx, config.main_teacher, handle)


def test_replica_that_is_scaled_away_may_finish_what_a_client_waits_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(run_dir=str(tmp_path), deadlines__request=1234.0)
    ctx = RunContext(config, RunDir.of(config), Progress(config.name, RunDir.of(config)))
    deployed: list[Any] = []

    def run_many(targets: list[Any], **_: object) -> list[None]:
        deployed.extend(targets)
        return [None]

    monkeypatch.setattr("cluster.teachers.teacher_device", lambda *_: Device.CPU)
    monkeypatch.setattr("cluster.teachers._start_serve", lambda _: None)
    monkeypatch.setattr("ray.serve.run_many", run_many)
    start_teachers(ctx, {config.main_teacher: 8})
    [target] = deployed
    assert target.target._bound_deployment._deployment_config.graceful_shutdown_timeout_s == 1234.0
