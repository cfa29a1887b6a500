"""Two sides of a run, of which none outlives the other."""

import signal
import threading
from collections.abc import Iterator

import pytest

from cluster.beside import Beside
from configs.errors import BudgetReached, UserError

pytestmark = pytest.mark.unit

DEADLINE_S = 20.0


@pytest.fixture(autouse=True)
def sigterm() -> Iterator[None]:
    """Put back what the process did on SIGTERM before."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def until(event: threading.Event) -> None:
    event.wait(DEADLINE_S)


def test_error_of_the_work_ends_a_block_that_waits_and_is_what_leaves_it() -> None:
    def work(_: threading.Event) -> None:
        raise BudgetReached("budget.max_usd is reached")

    # As in `queue.get`; a wait that goes on to its end would raise nothing.
    with pytest.raises(BudgetReached, match="max_usd"):
        Beside(work, DEADLINE_S).run(lambda: until(threading.Event()))


def test_error_of_the_block_stops_the_work_and_stays_the_error() -> None:
    ended = threading.Event()

    def work(stopped: threading.Event) -> None:
        until(stopped)
        ended.set()
        raise UserError("a follow-up of being stopped")

    def block() -> None:
        raise UserError("the teacher could not start")

    with pytest.raises(UserError, match="the teacher"):
        Beside(work, DEADLINE_S).run(block)
    assert ended.is_set()


def test_interrupt_by_the_user_stops_the_work_and_stays_an_interrupt() -> None:
    ended = threading.Event()

    def work(stopped: threading.Event) -> None:
        until(stopped)
        ended.set()

    with pytest.raises(KeyboardInterrupt):
        Beside(work, DEADLINE_S).run(lambda: signal.raise_signal(signal.SIGTERM))
    assert ended.is_set()


def test_wait_returns_when_the_work_is_done_and_not_before() -> None:
    may_end, is_done = threading.Event(), threading.Event()

    def work(_: threading.Event) -> None:
        until(may_end)
        is_done.set()

    side = Beside(work, DEADLINE_S)

    def block() -> None:
        may_end.set()
        side.wait()
        assert is_done.is_set()

    side.run(block)


def test_error_of_the_work_leaves_a_wait_for_it() -> None:
    def work(_: threading.Event) -> None:
        raise UserError("the gradient is not finite")

    side = Beside(work, DEADLINE_S)
    with pytest.raises(UserError, match="gradient"):
        side.run(side.wait)


def test_work_that_does_not_stop_is_left_behind_at_the_deadline() -> None:
    may_end, has_ended = threading.Event(), threading.Event()

    def work(_: threading.Event) -> None:
        until(may_end)
        has_ended.set()

    Beside(work, 0.1).run(lambda: None)
    assert not has_ended.is_set()
    may_end.set()
    until(has_ended)
    assert has_ended.is_set()
