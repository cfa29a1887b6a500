"""Ending a run at any moment and running the same command again comes to the same ledger and the same student."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.program import SMALL, Outcome, end_session, processes_of, progress_of, start, stillhouse

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

SIGN_OF_LIFE_S = 240


@pytest.fixture(scope="module")
def undisturbed(shared_runs: Path) -> Path:
    directory = shared_runs / "undisturbed"
    outcome = stillhouse("run", *SMALL, f"run_dir={directory}", timeout_s=600)
    assert outcome.code == 0, outcome.err
    return directory


def end_when(directory: Path, is_time: Callable[[dict[str, Any]], bool], sign: signal.Signals) -> Outcome:
    """Start the run, wait for a moment that its progress shows, and send the signal to the driver alone."""
    process = start("run", *SMALL, f"run_dir={directory}")
    give_up_at = time.monotonic() + SIGN_OF_LIFE_S
    try:
        while not is_time(progress_of(directory)):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < give_up_at, f"the moment did not come: {progress_of(directory)}"
            time.sleep(0.05)
        os.kill(process.pid, sign)
        out, err = process.communicate(timeout=60)
        return Outcome(process.returncode, out, err)
    finally:
        if sign is not signal.SIGKILL:
            assert processes_of(process.pid) == []
        end_session(process.pid)


def assert_same_result(directory: Path, undisturbed: Path) -> None:
    """Equal ledgers and, as sampling is greedy, equal accuracies and losses to the last digit that is kept."""
    one, other = (json.loads((run / "report.json").read_text()) for run in (directory, undisturbed))
    assert one["ledger"] == other["ledger"]
    assert one["accuracy"] == other["accuracy"]
    assert one["training"]["final_loss"] == pytest.approx(other["training"]["final_loss"], abs=1e-6)


def test_run_ended_twice_comes_to_the_same_ledger_and_student(shared_runs: Path, undisturbed: Path) -> None:
    directory = shared_runs / "ended"
    interrupted = end_when(directory, lambda now: now["phase"] == "generate" and now["done"] > 0, signal.SIGINT)
    assert interrupted.code == 130
    assert "run the same command again" in interrupted.err
    assert "Traceback" not in interrupted.err
    end_when(directory, lambda now: now["phase"] == "train" and now["done"] > 0, signal.SIGKILL)
    outcome = stillhouse("run", *SMALL, f"run_dir={directory}", timeout_s=600)
    assert outcome.code == 0, outcome.err
    assert "generate: done" not in outcome.err  # it was done before the second end
    assert_same_result(directory, undisturbed)


def test_run_stops_in_generation_when_its_budget_is_reached(shared_runs: Path) -> None:
    directory = shared_runs / "budget"
    stopped = stillhouse("run", *SMALL, f"run_dir={directory}", "budget.max_usd=0.000001")
    assert stopped.code == 3, stopped.err
    assert "raise budget.max_usd" in stopped.err
    assert json.loads((directory / "spending.json").read_text())["usd"] > 0


def test_training_stops_with_a_checkpoint_when_its_budget_is_reached_and_goes_on_with_a_larger_one(
    shared_runs: Path, undisturbed: Path
) -> None:
    """The clock of a training starts with its cluster, so a budget a second above what is spent ends in its steps."""
    directory = shared_runs / "budget-of-training"
    # The same rows for a student of its own, which takes so many steps that only a budget ends them.
    shutil.copytree(undisturbed, directory, ignore=shutil.ignore_patterns("config.json", "training"))
    seen: list[list[str]] = []
    for _ in range(2):
        spent_s = json.loads((directory / "spending.json").read_text())["seconds"]
        budget = f"budget.max_hours={(spent_s + 1) / 3600}"
        steps = ("training.max_steps=10000", "training.log_every=1")
        stopped = stillhouse("train", *SMALL, *steps, f"run_dir={directory}", budget)
        assert stopped.code == 3, stopped.err
        assert "of 10000, with a checkpoint" in stopped.err
        assert "raise budget.max_hours" in stopped.err
        [metrics] = directory.glob("training/student-*/metrics.jsonl")
        seen.append(metrics.read_text().splitlines())
        last = json.loads(seen[-1][-1])["step"]
        assert (metrics.parent / "checkpoints" / f"step-{last:08d}" / "complete.json").is_file()
    first, second = seen
    assert len(first) < len(second)
    assert second[: len(first)] == first  # no step was taken again
