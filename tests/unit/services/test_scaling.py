"""The decision on the number of replicas, and the policy that Serve asks for it."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from services.scaling import SILENCE_S, Backlog, BacklogPolicy, Bounds, Pace, wanted_replicas

pytestmark = pytest.mark.unit

BOUNDS = Bounds(min_replicas=1, max_replicas=8, window_rows=100)
PACE = Pace(tokens_per_s=1000.0, tokens_per_row=100.0, cold_start_s=60.0)
# 10,000 rows of 100 tokens are a million tokens: 1,000 seconds of one replica.
ROWS = 10_000
NOW = 1e9


@pytest.mark.parametrize(
    ("rows", "seconds_left", "current", "wanted"),
    [
        # No deadline: as many as have work for the 60 s that one takes to start.
        (ROWS, None, 1, 8),
        (ROWS // 5, None, 1, 3),
        (ROWS // 10, None, 1, 1),
        (ROWS // 100, None, 1, 1),
        # Those that are up stay while each has a window of rows.
        (ROWS // 10, None, 5, 5),
        (350, None, 5, 4),
        (101, None, 5, 2),
        (100, None, 5, 1),
        (1, None, 5, 1),
        # A deadline: the fewest that meet it; further ones count from when they are ready.
        (ROWS, 1000.0, 1, 1),
        (ROWS, 999.0, 1, 2),
        (ROWS, 560.0, 1, 2),
        (ROWS, 500.0, 1, 3),
        (ROWS, 250.0, 1, 5),
        (ROWS, 100.0, 1, 8),
        # What is up and not needed goes, with a fifth of the time in hand.
        (ROWS, 1000.0, 4, 2),
        (ROWS, 1200.0, 4, 1),
        (ROWS, 500.0, 3, 3),
        (ROWS, 500.0, 2, 2),
        # No replica would be ready in time, or the time is over: as without a deadline.
        (ROWS, 59.0, 2, 8),
        (ROWS, 0.0, 1, 8),
        (ROWS, -5.0, 1, 8),
        (ROWS // 10, 1.0, 1, 1),
        # Nothing left.
        (0, None, 5, 0),
        (0, 100.0, 5, 0),
    ],
)
def test_wanted_replicas_follow_backlog_and_deadline(
    rows: int, seconds_left: float | None, current: int, wanted: int
) -> None:
    assert wanted_replicas(Backlog(rows, seconds_left), PACE, current, BOUNDS) == wanted


def test_unknown_pace_changes_nothing_but_what_windows_and_bounds_say() -> None:
    assert wanted_replicas(Backlog(ROWS, 1.0), None, 3, BOUNDS) == 3
    assert wanted_replicas(Backlog(150, 1.0), None, 3, BOUNDS) == 2
    assert wanted_replicas(Backlog(ROWS, 1.0), None, 0, BOUNDS) == 1


def test_fixed_number_stays_until_nothing_is_left() -> None:
    fixed = Bounds(min_replicas=4, max_replicas=4, window_rows=100)
    assert wanted_replicas(Backlog(1, None), PACE, 4, fixed) == 4
    assert wanted_replicas(Backlog(ROWS, 10.0), PACE, 4, fixed) == 4
    assert wanted_replicas(Backlog(0, None), PACE, 4, fixed) == 0


def test_replicas_that_start_at_once_are_not_divided_by() -> None:
    assert wanted_replicas(Backlog(ROWS, None), Pace(1000.0, 100.0, 0.0), 1, BOUNDS) == 8


@dataclass(frozen=True, slots=True)
class Point:
    """One value of Serve's time series."""

    value: float


@dataclass
class Context:
    """As much of Serve's `AutoscalingContext` as the policy reads."""

    raw_metrics: dict[str, dict[str, list[Point]]] = field(default_factory=dict)
    current_time: float = NOW
    total_num_requests: float = 0.0
    current_num_replicas: int = 1
    target_num_replicas: int = 1


def metrics(**replicas: dict[str, float]) -> dict[str, dict[str, list[Point]]]:
    """Serve's form of the replicas' reports, each with an older value that must not count."""
    series: dict[str, dict[str, list[Point]]] = {"running_requests": {name: [Point(1.0)] for name in replicas}}
    for name, report in replicas.items():
        for key, value in report.items():
            series.setdefault(key, {})[name] = [Point(-1.0), Point(value)]
    return series


def report(**values: float) -> dict[str, float]:
    known = {"rows": ROWS, "ends_at": 0.0, "told_at": NOW - 1, "tokens_per_s": 1000.0, "tokens_per_row": 100.0}
    return {**known, "cold_start_s": 60.0, **values}


def ask(policy: BacklogPolicy, context: Any) -> int:
    wanted, state = policy(context)
    assert state == {}
    return wanted


@pytest.fixture
def policy() -> BacklogPolicy:
    return BacklogPolicy(min_replicas=1, max_replicas=8, window_rows=100)


def test_newest_report_of_the_backlog_counts_and_the_mean_of_the_paces(policy: BacklogPolicy) -> None:
    replicas = metrics(
        old=report(told_at=NOW - 9, rows=5 * ROWS, tokens_per_s=500.0),
        newest=report(told_at=NOW - 1, ends_at=NOW + 500.0, tokens_per_s=1500.0),
        fresh=report(told_at=0.0, rows=0.0, tokens_per_s=0.0),
    )
    assert ask(policy, Context(replicas, target_num_replicas=1)) == 3


def test_without_a_report_the_number_stays(policy: BacklogPolicy) -> None:
    assert ask(policy, Context(current_num_replicas=0, target_num_replicas=2)) == 2
    assert ask(policy, Context(metrics(a=report(told_at=0.0)), target_num_replicas=2)) == 2


def test_finished_backlog_ends_all_replicas(policy: BacklogPolicy) -> None:
    assert ask(policy, Context(metrics(a=report(rows=0.0)), target_num_replicas=3)) == 0


def test_what_was_told_and_measured_outlives_the_replica_that_knew_it(policy: BacklogPolicy) -> None:
    knowing = metrics(a=report(rows=0.0), b=report(told_at=NOW - 5, tokens_per_s=0.0))
    assert ask(policy, Context(knowing, target_num_replicas=2)) == 0
    left = Context(metrics(b=report(told_at=NOW - 5, tokens_per_s=0.0)), current_time=NOW + 1)
    assert ask(policy, left) == 0
    left.raw_metrics = metrics(b=report(told_at=NOW, tokens_per_s=0.0))
    assert ask(policy, left) == 8


def test_run_that_is_silent_and_asks_for_nothing_is_dead_and_its_replicas_end(policy: BacklogPolicy) -> None:
    replicas = metrics(a=report(told_at=NOW))
    assert ask(policy, Context(replicas, target_num_replicas=8)) == 8
    later = Context(replicas, current_time=NOW + SILENCE_S + 1, target_num_replicas=8, total_num_requests=1.0)
    assert ask(policy, later) == 8
    later.total_num_requests, later.current_time = 0.0, later.current_time + SILENCE_S + 1
    assert ask(policy, later) == 0


def test_run_that_died_before_its_first_report_frees_what_it_started(policy: BacklogPolicy) -> None:
    loading = Context(current_num_replicas=0)
    assert ask(policy, loading) == 1
    up = Context(metrics(a=report(told_at=0.0)), current_time=NOW + 10 * SILENCE_S, current_num_replicas=1)
    loading.current_time = up.current_time
    assert ask(policy, loading) == 1
    assert ask(policy, up) == 1
    up.current_time += SILENCE_S + 1
    assert ask(policy, up) == 0
