"""The driver hears from its reports when a replica has last answered a row."""

import math
import time
from threading import Event
from typing import Any

import pytest

import services.backlog
from services.backlog import BacklogReporter
from services.generation import GenerateResult
from services.meter import Meter

pytestmark = pytest.mark.unit

WAIT_S = 20.0


class Replica:
    """Looks like a deployment handle and like what it returns; the meter is a real one."""

    def __init__(self, told: int) -> None:
        self.meter, self.told, self.is_told = Meter(0.0), told, Event()

    @property
    def tell_backlog(self) -> "Replica":
        return self

    def remote(self, rows: int, seconds_left: float | None) -> "Replica":
        self.idle_s = self.meter.tell(rows, seconds_left)
        return self

    def result(self, timeout_s: float) -> Any:
        self.told -= 1
        if self.told <= 0:
            self.is_told.set()
        return self.idle_s

    def cancel(self) -> None:
        """Nothing is under way."""


def hear(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr(services.backlog, "TELL_EVERY_S", 0.01)
    with BacklogReporter(replica, 10, None) as reporter:
        assert replica.is_told.wait(WAIT_S)
    return reporter.heard_at


def test_replica_that_has_answered_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    replica, before = Replica(told=3), time.monotonic()
    with replica.meter.call():
        replica.meter.count([GenerateResult("row", error="too long")])  # a refusal is an answer as well
    after = time.monotonic()
    assert before - 1e-3 <= hear(replica, monkeypatch) <= after + WAIT_S


def test_replica_that_has_answered_nothing_is_not_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hear(Replica(told=3), monkeypatch) == -math.inf
