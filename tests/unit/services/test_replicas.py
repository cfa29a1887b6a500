"""A client's window follows the replicas that run."""

import time
from collections.abc import Callable

import pytest
from ray import serve
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatus, ServeStatus

import services.client
from services.replicas import running_replicas, window_share
from tests.unit.services.clients import StandInTeacher, make_client, make_spec
from tests.unit.services.serve_status import application, serve_status

pytestmark = pytest.mark.unit

WAIT_S = 20.0


def status(**replicas: int) -> ServeStatus:
    """What Serve says of an application with so many replicas in each state."""
    return serve_status(teacher=application(replicas, ApplicationStatus.RUNNING))


@pytest.mark.parametrize(
    ("said", "running"),
    [
        (status(RUNNING=3, STARTING=2, STOPPING=1), 3),
        (status(STARTING=2), 0),
        (status(), 0),
        (ServeStatus(), 0),
    ],
)
def test_running_replicas_are_those_that_take_calls(
    monkeypatch: pytest.MonkeyPatch, said: ServeStatus, running: int
) -> None:
    monkeypatch.setattr(serve, "status", lambda: said)
    assert running_replicas("teacher") == running


@pytest.mark.parametrize(("running", "rows"), [(0, 48), (1, 48), (2, 96), (8, 384), (9, 384)])
def test_window_share_is_that_of_the_replicas_that_run_and_of_one_at_the_least(running: int, rows: int) -> None:
    assert window_share(384, running, 8) == rows


def test_window_share_is_never_empty() -> None:
    assert window_share(2, 1, 64) == 1


def test_client_follows_the_replicas_and_outlives_a_controller_that_does_not_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    says: list[ServeStatus | RayServeException] = [ServeStatus()]
    refusals = 0

    def read_status() -> ServeStatus:
        nonlocal refusals
        if isinstance(says[-1], RayServeException):
            refusals += 1
            raise says[-1]
        return says[-1]

    monkeypatch.setattr(services.client, "LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(serve, "status", read_status)
    with make_client(monkeypatch, make_spec(window_rows=384, max_replicas=8), StandInTeacher()) as client:
        wait_for(lambda: client.window_rows == 48)
        says.append(status(RUNNING=8))
        wait_for(lambda: client.window_rows == 384)
        says.append(RayServeException("the controller is gone"))
        wait_for(lambda: refusals >= 2)
        assert client.window_rows == 384
        says.append(status(RUNNING=2))
        wait_for(lambda: client.window_rows == 96)


def wait_for(condition: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.01)


def test_window_of_one_replica_is_whole_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "status", lambda: pytest.fail("nobody asks"))
    with make_client(monkeypatch, make_spec(window_rows=384, max_replicas=1), StandInTeacher()) as client:
        assert client.window_rows == 384
