"""How a job's log is followed: Ray's own client on connections that break, to a server that plays the dashboard."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
import ray
from aiohttp import web

from cluster.job_client import JobClient
from cluster.job_log import follow_job
from configs.errors import DeadlineExceeded

pytestmark = pytest.mark.unit

JOB = "stillhouse-small-1"
# What a connection does after it has sent its part of the log.
DROPPED, CLOSED, REFUSED = "dropped", "closed", "refused"


@dataclass
class Dashboard:
    """Each connection to the log takes the next of ``connections``; each question the next of ``states``, and the last
    of them again and again."""

    connections: list[tuple[list[str], str]]
    states: list[str]
    log: str = ""
    address: str = ""
    asked: int = field(default=0)

    async def version(self, _: web.Request) -> web.Response:
        known = {"version": "4", "ray_version": ray.__version__, "ray_commit": "", "session_name": "s"}
        return web.json_response(known)

    async def job(self, _: web.Request) -> web.Response:
        state = self.states[min(self.asked, len(self.states) - 1)]
        self.asked += 1
        if not state:
            return web.Response(status=500, text="no")
        job = {"type": "SUBMISSION", "submission_id": JOB, "status": state, "entrypoint": "python", "message": state}
        return web.json_response(job)

    async def whole_log(self, _: web.Request) -> web.Response:
        return web.json_response({"logs": self.log})

    async def tail(self, request: web.Request) -> web.StreamResponse:
        pieces, end = self.connections.pop(0) if self.connections else ([], REFUSED)
        if end == REFUSED:
            return web.Response(status=502)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        for piece in pieces:
            await socket.send_str(piece)
        if end == DROPPED:
            assert request.transport is not None
            request.transport.abort()
        return socket


Serve = Callable[[Dashboard], JobClient]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Starts a dashboard on a thread and returns Ray's client of it."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setattr("cluster.job_log.RECONNECT_EVERY_S", 0.0)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    runners: list[web.AppRunner] = []

    async def start(dashboard: Dashboard) -> int:
        app = web.Application()
        app.router.add_get("/api/version", dashboard.version)
        app.router.add_get(f"/api/jobs/{JOB}", dashboard.job)
        app.router.add_get(f"/api/jobs/{JOB}/logs", dashboard.whole_log)
        app.router.add_get(f"/api/jobs/{JOB}/logs/tail", dashboard.tail)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        runners.append(runner)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return int(runner.addresses[0][1])

    def begin(dashboard: Dashboard) -> JobClient:
        port = asyncio.run_coroutine_threadsafe(start(dashboard), loop).result(10)
        return JobClient(f"http://127.0.0.1:{port}")

    yield begin
    for runner in runners:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.mark.parametrize("end", [DROPPED, CLOSED])
def test_log_whose_connection_breaks_off_is_followed_to_the_jobs_end(
    end: str, serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    connections = [(["a\n"], end), (["a\nb", "\n"], end), (["a\n", "b\nc\n"], CLOSED)]
    states = ["RUNNING", "RUNNING", "SUCCEEDED"]
    assert follow_job(serve(Dashboard(connections, states, log="a\nb\nc\n")), JOB) == 0
    captured = capsys.readouterr()
    assert captured.out == "a\nb\nc\n"  # each new connection begins with the log's first line
    assert captured.err.count(f"the log of job {JOB} broke off") == 1


def test_log_that_the_dashboard_ends_early_in_due_form_is_shown_to_its_end(
    serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    dashboard = Dashboard([(["a\n"], CLOSED)], ["FAILED"], log="a\nerror: no\n")
    assert follow_job(serve(dashboard), JOB) == 1
    assert capsys.readouterr().out == "a\nerror: no\n"


def test_job_whose_log_cannot_be_followed_any_more_is_waited_for_and_its_log_is_shown(
    serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    dashboard = Dashboard([(["a\n"], DROPPED)], ["RUNNING", "", "RUNNING", "FAILED"], log="a\nb\nerror: no\n")
    assert follow_job(serve(dashboard), JOB) == 1
    captured = capsys.readouterr()
    assert captured.out == "a\nb\nerror: no\n"
    assert f"error: job {JOB} ended as FAILED" in captured.err
    assert dashboard.asked == 4


def test_cluster_that_is_gone_for_good_is_told_as_that_and_not_as_the_jobs_fault(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.job_log.RECONNECT_S", 0.0)
    sentence = rf"has sent nothing of job {JOB} and has not said how it is .*the job may go on: .*stillhouse jobs logs"
    with pytest.raises(DeadlineExceeded, match=sentence):
        follow_job(serve(Dashboard([(["a\n"], DROPPED)], [""])), JOB)
