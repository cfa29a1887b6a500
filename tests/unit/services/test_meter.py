"""What a replica measures of itself, on a clock that the tests move."""

import math
from dataclasses import dataclass

import pytest

from services.generation import GenerateResult, Sample
from services.meter import KNOWN_AFTER_S, MEMORY_S, Meter

pytestmark = pytest.mark.unit


@dataclass
class Clock:
    """A clock that goes on when told."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def meter(clock: Clock) -> Meter:
    return Meter(12.0, clock=clock, wall_clock=clock)


def answers(*lengths: int) -> list[GenerateResult]:
    return [GenerateResult("row", (Sample([7] * length, "stop"),)) for length in lengths]


def test_speed_is_that_of_the_time_with_calls_from_the_first_answer_on(meter: Meter, clock: Clock) -> None:
    with meter.call():
        clock.now += 50.0  # the first answers are on their way; nobody sees how far they are
        meter.count(answers(100, 300))
        for _ in range(5):
            clock.now += 2.0
            meter.count(answers(80, 120))
    clock.now += 500.0  # without calls
    with meter.call():
        clock.now += 30.0
        meter.count(answers(100))
    report = meter.report()
    assert report["tokens_per_s"] == pytest.approx(100.0)
    assert report["tokens_per_row"] == pytest.approx(1500 / 13)
    assert report["cold_start_s"] == 12.0


def test_speed_is_unknown_until_it_has_been_measured_for_a_while(meter: Meter, clock: Clock) -> None:
    assert meter.report()["tokens_per_s"] == 0.0
    with meter.call():
        meter.count(answers(10))
        clock.now += KNOWN_AFTER_S - 0.1
        meter.count(answers(10))
        assert meter.report()["tokens_per_s"] == 0.0
        clock.now += 0.2
        meter.count(answers(10))
        assert meter.report()["tokens_per_s"] > 0.0


def test_older_speed_is_forgotten(meter: Meter, clock: Clock) -> None:
    with meter.call():
        meter.count(answers(1))
        clock.now += MEMORY_S
        meter.count(answers(round(1000 * MEMORY_S)))
        for _ in range(10):
            clock.now += MEMORY_S
            meter.count(answers(round(10 * MEMORY_S)))
    assert meter.report()["tokens_per_s"] == pytest.approx(10.0, rel=0.1)


def test_what_the_run_tells_is_reported_with_its_time(meter: Meter, clock: Clock) -> None:
    assert meter.report()["told_at"] == 0.0
    meter.tell(500, 60.0)
    assert {key: meter.report()[key] for key in ("rows", "ends_at", "told_at")} == {
        "rows": 500.0,
        "ends_at": clock.now + 60.0,
        "told_at": clock.now,
    }
    clock.now += 5.0
    meter.tell(400, None)
    assert (meter.report()["rows"], meter.report()["ends_at"], meter.report()["told_at"]) == (400.0, 0.0, clock.now)


def test_refused_and_no_rows_count_for_nothing(meter: Meter, clock: Clock) -> None:
    with meter.call():
        meter.count([])
        meter.count([GenerateResult("row", error="too long")])
        clock.now += 100.0
        meter.count([])
    assert meter.report()["tokens_per_row"] == 0.0


def test_teller_hears_how_long_ago_a_row_was_answered(meter: Meter, clock: Clock) -> None:
    assert meter.tell(100, None) == math.inf
    with meter.call():
        clock.now += 5.0
        meter.count(answers(10))
    clock.now += 7.0
    assert meter.tell(90, None) == 7.0
