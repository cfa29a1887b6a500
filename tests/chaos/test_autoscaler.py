"""Nodes that Ray's own autoscaler starts and ends for a run, none to begin with and none in the end."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.harness import Chaos
from tests.integration.program import ROOT, end_session, environment, processes_of

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(280)]

PROGRAM_S = 200.0


def test_nodes_come_for_a_run_and_go_again_with_each_row_made_once_and_another_ray_left_alone(
    chaos: Chaos, tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    options = ["--rows", "640", "--provider-delay", "2", "--idle-timeout", "3", "--json", str(report)]
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks", "autoscaler", *options],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        out, _ = process.communicate(timeout=PROGRAM_S)
        assert report.exists(), out
        assert processes_of(process.pid) == []
    finally:
        end_session(process.pid)
    # Its seconds, and so its exit status, are the machine's.
    measured = json.loads(report.read_text())
    assert (measured["nodes"][0], max(measured["nodes"]), measured["nodes"][-1]) == (0, 2, 0)
    assert measured["rows"] == {"planned": 640, "lost": 0, "doubled": 0, "tokens_again": 0}
    assert len(measured["idle_s"]) == sum(
        after > before for before, after in zip(measured["nodes"], measured["nodes"][1:], strict=False)
    )
    assert chaos.cluster.remaining_processes_alive()
