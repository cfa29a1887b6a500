"""Jobs on a cluster that `ray start --head` began on loopback: killed, stopped, resumed, and two beside each other."""

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.cli import run_command
from cluster.metrics import METRICS
from tests.integration.program import SMALL, Outcome, end_session, environment, progress_of

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

START_S = 180
MOMENT_S = 400  # for a moment of a run to come, on a machine that two runs share
NO_PEAK = {"mfu"}  # measured on GPUs alone, as of a CPU nothing says what it could do


@dataclass(frozen=True, slots=True)
class Head:
    """A cluster of one node: its dashboard, its metrics, and the session of its processes."""

    dashboard: str
    metrics: str
    session: int


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """The cluster is ended by its session, whatever a test did to it."""
    port, metrics_port = free_port(), free_port()
    scripts = Path(sys.executable).parent
    with tempfile.TemporaryDirectory(prefix="sh-head-", ignore_cleanup_errors=True) as temp_dir:
        command = [
            *(str(scripts / "ray"), "start", "--head", "--block", "--node-ip-address=127.0.0.1"),
            *("--dashboard-host=127.0.0.1", f"--dashboard-port={port}", f"--port={free_port()}"),
            *(f"--temp-dir={temp_dir}", "--num-cpus=4", f"--object-store-memory={128 << 20}"),
            *(f"--ray-client-server-port={free_port()}", f"--dashboard-agent-listen-port={free_port()}"),
            *(f"--metrics-export-port={metrics_port}", "--disable-usage-stats"),
        ]
        shell = environment() | {"RAY_AUTH_MODE": "disabled", "PATH": f"{scripts}:{os.environ['PATH']}"}
        shell["RAY_metrics_report_interval_ms"] = "1000"
        with subprocess.Popen(command, env=shell, start_new_session=True, stdout=subprocess.DEVNULL) as ray:
            try:
                wait_for(f"http://127.0.0.1:{port}/api/version")
                yield Head(f"http://127.0.0.1:{port}", f"http://127.0.0.1:{metrics_port}/metrics", ray.pid)
            finally:
                end_session(ray.pid)


def wait_for(url: str) -> None:
    give_up_at = time.monotonic() + START_S
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            assert time.monotonic() < give_up_at, f"{url} did not answer in {START_S} s"
            time.sleep(0.5)


def stillhouse(head: Head, *arguments: str) -> Outcome:
    """The program as a user types it beside the cluster, in this process: starting one takes as long as a phase."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = run_command([*arguments, "--address", head.dashboard])
    return Outcome(code, out.getvalue(), err.getvalue())


def begin(head: Head, *arguments: str) -> str:
    """Submit a job; its id."""
    outcome = stillhouse(head, *arguments, "--no-follow")
    assert outcome.code == 0, outcome.err
    [job_id] = re.findall(r"^submitted (\S+) to ", outcome.err, flags=re.MULTILINE)
    return str(job_id)


def wait_until(is_time: Callable[[], bool], what: Callable[[], Any]) -> None:
    give_up_at = time.monotonic() + MOMENT_S
    while not is_time():
        assert time.monotonic() < give_up_at, what()
        time.sleep(0.05)


def wait_for_phase(directory: Path, phase: str) -> None:
    """Until something of the phase is done."""

    def is_reached() -> bool:
        progress = progress_of(directory)
        return progress["phase"] == phase and progress["done"] > 0

    wait_until(is_reached, lambda: progress_of(directory))


def driver_of(head: Head, directory: Path) -> psutil.Process:
    """The program's own process in a job."""
    for process in psutil.Process(head.session).children(recursive=True):
        with suppress(psutil.Error):
            words = process.cmdline()
            if words[:3] == ["python", "-m", "cluster"] and f"run_dir={directory}" in words:
                return process
    raise AssertionError(f"no job runs in {directory}")


@contextmanager
def scraped(url: str) -> Iterator[set[str]]:
    """Names of all metrics that Prometheus would have found there meanwhile, with the panels' labels."""
    names: set[str] = set()
    done = threading.Event()

    def scrape() -> None:
        while not done.wait(1.0):
            with urllib.request.urlopen(url, timeout=10) as answer:
                names.update(re.findall(r"^(\w+)\{", answer.read().decode(), flags=re.MULTILINE))

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield names
    finally:
        done.set()
        thread.join()


@pytest.fixture(autouse=True)
def program(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the program takes for itself in this process is given back."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_jobs_killed_stopped_and_resumed_beside_another_come_to_their_ends(head: Head, shared_runs: Path) -> None:
    directory, beside = shared_runs / "submitted", shared_runs / "beside"
    run = ("submit", *SMALL, f"run_dir={directory}", "training.max_steps=120")
    first = begin(head, *run)
    second = stillhouse(head, *run)
    assert second.code == 2
    assert f"job {first} (run) is under way in {directory}" in second.err

    # Of the same name, in a directory of its own; it has the teacher that the first has made.
    wait_until(lambda: (directory / "phases" / "plan.json").exists(), lambda: progress_of(directory))
    few = ("prompts.addition.num_problems=64", f"run_dir={beside}")
    other = begin(head, "submit", *SMALL, *few, "--command", "generate")
    wait_for_phase(directory, "generate")
    driver_of(head, directory).send_signal(signal.SIGKILL)
    killed = stillhouse(head, "jobs", "logs", first)
    assert killed.code != 0
    assert f"job {first} ended as FAILED" in killed.err

    with scraped(head.metrics) as names:
        again = begin(head, *run)
        wait_for_phase(directory, "train")
        stopped = stillhouse(head, "jobs", "stop", again)
        assert stopped.code == 0, stopped.err
        assert f"job {again} ended as STOPPED" in stopped.out
        assert "interrupted; run the same command again" in stillhouse(head, "jobs", "logs", again, "--no-follow").out
        resumed = stillhouse(head, "jobs", "resume", again)
    assert resumed.code == 0, resumed.err + resumed.out[-3000:]
    assert "gap " in resumed.out  # the job's own log was followed to its end
    assert {metric.exported_name for metric in METRICS} - names == {f"ray_stillhouse_{key}" for key in NO_PEAK}
    assert "ray_serve_deployment_replica_healthy" in names

    report = json.loads((directory / "report.json").read_text())
    assert (report["ledger"]["planned"], report["ledger"]["pending"]) == (768, 0)
    assert report["accuracy"]["teacher"] >= 0.90
    assert (directory / "student" / "hf" / "model.safetensors").exists()

    assert stillhouse(head, "jobs", "logs", other).code == 0
    ledger = json.loads((beside / "manifest.json").read_text())["ledger"]
    assert (ledger["planned"], ledger["pending"]) == (64, 0)
    listed = stillhouse(head, "jobs", "list").out.splitlines()
    assert [line.split()[1] for line in listed] == ["FAILED", "SUCCEEDED", "STOPPED", "SUCCEEDED"]


def test_submitted_mistake_is_told_with_the_jobs_exit_code(head: Head, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    outcome = stillhouse(head, "submit", "configs/recipes/quickstart.yaml", f"run_dir={tmp_path}/file/run")
    assert outcome.code == 2
    assert "run_dir" in outcome.out
