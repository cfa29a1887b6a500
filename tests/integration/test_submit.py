"""The quickstart as a Ray job: `stillhouse submit` against a cluster that `ray start --head` began on loopback."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.program import ROOT, SMALL, Outcome, end_session, environment

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

START_S = 90


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def dashboard() -> Iterator[str]:
    """Address of a cluster's dashboard; the cluster is ended by its session, whatever a test did to it."""
    port = free_port()
    scripts = Path(sys.executable).parent
    with tempfile.TemporaryDirectory(prefix="sh-head-", ignore_cleanup_errors=True) as temp_dir:
        command = [
            *(str(scripts / "ray"), "start", "--head", "--block", "--node-ip-address=127.0.0.1"),
            *("--dashboard-host=127.0.0.1", f"--dashboard-port={port}", f"--port={free_port()}"),
            *(f"--temp-dir={temp_dir}", "--num-cpus=2", f"--object-store-memory={128 << 20}"),
            *(f"--ray-client-server-port={free_port()}", f"--dashboard-agent-listen-port={free_port()}"),
            "--disable-usage-stats",
        ]
        shell = environment() | {"RAY_AUTH_MODE": "disabled", "PATH": f"{scripts}:{os.environ['PATH']}"}
        with subprocess.Popen(command, env=shell, start_new_session=True, stdout=subprocess.DEVNULL) as head:
            try:
                wait_for(f"http://127.0.0.1:{port}/api/version")
                yield f"http://127.0.0.1:{port}"
            finally:
                end_session(head.pid)


def wait_for(url: str) -> None:
    give_up_at = time.monotonic() + START_S
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            assert time.monotonic() < give_up_at, f"{url} did not answer in {START_S} s"
            time.sleep(0.5)


def submit(address: str, *arguments: str) -> Outcome:
    done = subprocess.run(
        [sys.executable, "-m", "cluster", "submit", *arguments, "--address", address],
        cwd=ROOT,
        env=environment() | {"RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        timeout=800,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def test_submitted_quickstart_runs_to_the_end(dashboard: str, shared_runs: Path) -> None:
    directory = shared_runs / "submitted"
    outcome = submit(dashboard, *SMALL, f"run_dir={directory}")
    assert outcome.code == 0, outcome.err + outcome.out[-3000:]
    report = json.loads((directory / "report.json").read_text())
    assert (report["ledger"]["planned"], report["ledger"]["pending"]) == (768, 0)
    assert report["accuracy"]["teacher"] >= 0.90
    assert (directory / "student" / "hf" / "model.safetensors").exists()
    assert "gap " in outcome.out  # the job's own log was followed to its end


def test_submitted_mistake_is_told_with_the_jobs_exit_code(dashboard: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    outcome = submit(dashboard, "configs/recipes/quickstart.yaml", f"run_dir={tmp_path}/file/run")
    assert outcome.code == 2
    assert "run_dir" in outcome.out
