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
from deltalake import DeltaTable

from tests.integration.program import SMALL, Outcome, end_session, processes_of, progress_of, start, stillhouse

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

SIGN_OF_LIFE_S = 240
OVERLAPPED = ("cluster.phases=overlapped", "cluster.num_cpus=4", "training.packing_window_rows=64")
# One row at a time, so that the teacher still writes when the student's workers have started.
SLOW = ("generation.window_rows=1", "generation.rows_per_call=1")


@pytest.fixture(scope="module")
def undisturbed(shared_runs: Path) -> Path:
    directory = shared_runs / "undisturbed"
    outcome = stillhouse("run", *SMALL, f"run_dir={directory}", timeout_s=600)
    assert outcome.code == 0, outcome.err
    return directory


def end_when(
    directory: Path, is_time: Callable[[dict[str, Any]], bool], sign: signal.Signals, *overrides: str
) -> Outcome:
    """Start the run, wait for a moment that its progress shows, and send the signal to the driver alone."""
    process = start("run", *SMALL, *overrides, f"run_dir={directory}")
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
    few = "generation.window_rows=8"  # or all shards would end at the same time, and the run soon after
    interrupted = end_when(directory, lambda now: now["phase"] == "generate" and now["done"] > 0, signal.SIGINT, few)
    assert interrupted.code == 130
    assert "run the same command again" in interrupted.err
    assert "Traceback" not in interrupted.err
    end_when(directory, lambda now: now["phase"] == "train" and now["done"] > 0, signal.SIGKILL)
    outcome = stillhouse("run", *SMALL, f"run_dir={directory}", timeout_s=600)
    assert outcome.code == 0, outcome.err
    assert "generate: done" not in outcome.err  # it was done before the second end
    assert_same_result(directory, undisturbed)


def read_curve(directory: Path) -> list[dict[str, Any]]:
    """The lines of the one student that a run has trained."""
    [file] = (directory / "training").glob("student-*/metrics.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.slow  # two starts of everything on two cores, the first with a teacher that takes its time
def test_overlapped_run_that_is_killed_goes_on_and_comes_to_the_ledger_of_phases_in_turn(
    shared_runs: Path, undisturbed: Path
) -> None:
    directory = shared_runs / "overlapped"

    def both_work(now: dict[str, Any]) -> bool:  # and the checkpoint of step 5 is there, as one is written at a time
        beside = now.get("beside")
        return now["phase"] == "generate" and bool(beside) and beside["phase"] == "train" and beside["done"] >= 15

    end_when(directory, both_work, signal.SIGKILL, *OVERLAPPED, *SLOW)
    before = read_curve(directory)
    outcome = stillhouse("run", *SMALL, *OVERLAPPED, f"run_dir={directory}", timeout_s=600)
    assert outcome.code == 0, outcome.err
    report, in_turn = (json.loads((run / "report.json").read_text()) for run in (directory, undisturbed))
    assert report["ledger"] == in_turn["ledger"]
    assert report["accuracy"]["teacher"] == in_turn["accuracy"]["teacher"]
    after = read_curve(directory)
    assert [line["step"] for line in after] == list(range(5, 41, 5))
    assert after[0] == before[0]  # steps that were not taken again
    assert [line["loss"] for line in after[:3]] == pytest.approx([line["loss"] for line in before[:3]], abs=1e-6)
    overlap, seconds = report["overlap"], report["seconds"]
    assert 0 < overlap["first_step_s"] < overlap["makespan_s"]
    assert seconds["total"] <= sum(value for phase, value in seconds.items() if phase != "total")


def test_generation_stops_with_its_rows_when_its_budget_is_reached_and_goes_on_with_a_larger_one(
    shared_runs: Path, undisturbed: Path
) -> None:
    """A start may take a small budget whole, so the budget grows until a command has made rows, and not all."""
    directory = shared_runs / "budget"
    spent_s, num_rows = 0.0, 0
    while num_rows == 0:
        budget = f"budget.max_hours={(spent_s + 15) / 3600}"
        stopped = stillhouse("generate", *SMALL, *SLOW, budget, f"run_dir={directory}")
        assert stopped.code == 3, stopped.err
        assert "raise budget.max_hours" in stopped.err
        spent_s = json.loads((directory / "spending.json").read_text())["seconds"]
        num_rows = DeltaTable(str(directory / "completions")).to_pyarrow_dataset().count_rows()
    assert num_rows < 768
    outcome = stillhouse("generate", *SMALL, f"run_dir={directory}")
    assert outcome.code == 0, outcome.err
    one, other = (json.loads((run / "phases/seal.json").read_text()) for run in (directory, undisturbed))
    assert one["ledger"] == other["ledger"]


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
