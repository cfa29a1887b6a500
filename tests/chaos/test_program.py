"""The program as a user types it, with the real engine, killed again and again during one small quickstart."""

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.integration.program import end_session, processes_of, progress_of, start, stillhouse

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(3600)]

RUN = (
    "run",
    "configs/recipes/quickstart.yaml",
    "prompts.addition.num_problems=1536",
    "generation.shard_rows=64",
    "evaluation.addition.num_problems=64",
    "training.max_steps=150",  # fifty checkpoints: the run must outlive its killer
    "training.checkpoint_every=3",
    "training.log_every=3",
    "student.control=false",
)
KILLS = 20
SIGN_OF_LIFE_S = 300
LONGEST_PAUSE_S = 1.0
NOWHERE = ("", 0)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; the home-made teacher lies in the cache beside it, where the others find it."""
    directory = tmp_path_factory.mktemp("runs") / "undisturbed"
    outcome = stillhouse(*RUN, f"run_dir={directory}", timeout_s=900)
    assert outcome.code == 0, outcome.err
    return directory


def test_driver_killed_twenty_times_ends_with_the_same_ledger_and_student(
    undisturbed: Path, pytestconfig: pytest.Config
) -> None:
    directory, rng = undisturbed.parent / "killed", random.Random(pytestconfig.getoption("--chaos-seed"))
    kills = 0
    while kills < KILLS and _kill_after_progress(directory, rng):
        kills += 1
    print(f"chaos: the driver was killed {kills} times")
    outcome = stillhouse(*RUN, f"run_dir={directory}", timeout_s=900)
    assert outcome.code == 0, outcome.err
    assert kills == KILLS
    assert_same_result(directory, undisturbed)


def test_real_replica_killed_while_it_answers_is_replaced(undisturbed: Path) -> None:
    directory = undisturbed.parent / "replica"
    process = start(*RUN, f"run_dir={directory}")
    try:
        _wait_for(process, lambda: progress_of(directory)["phase"] == "generate" and progress_of(directory)["done"] > 0)
        killed = list(_replicas(process.pid))
        for replica in killed:
            replica.kill()
        assert killed
        _, err = process.communicate(timeout=900)
        assert process.returncode == 0, err
    finally:
        end_session(process.pid)
    assert_same_result(directory, undisturbed)


def assert_same_result(directory: Path, undisturbed: Path) -> None:
    """Sampling is greedy, so not the counts alone are equal, but what the student has learnt."""
    one, other = (json.loads((run / "report.json").read_text()) for run in (directory, undisturbed))
    assert one["ledger"] == other["ledger"]
    assert one["accuracy"] == other["accuracy"]
    assert one["training"]["final_loss"] == pytest.approx(other["training"]["final_loss"], abs=1e-6)


def _kill_after_progress(directory: Path, rng: random.Random) -> bool:
    """Run the command until it has done something, and a little longer; False when it ended before."""
    process, begun = start(*RUN, f"run_dir={directory}"), _place(directory)
    try:
        _wait_for(process, lambda: _place(directory) not in (NOWHERE, begun))
        time.sleep(rng.uniform(0, LONGEST_PAUSE_S))
        if process.poll() is not None:
            return False
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
        return True
    finally:
        end_session(process.pid)


def _wait_for(process: Any, condition: Any) -> None:
    give_up_at = time.monotonic() + SIGN_OF_LIFE_S
    while process.poll() is None and not condition():
        assert time.monotonic() < give_up_at, "nothing happened"
        time.sleep(0.05)


def _place(directory: Path) -> tuple[str, int]:
    """Where the run is, as far as it is past the start of its cluster."""
    progress = progress_of(directory)
    if progress["phase"] not in ("generate", "train", "evaluate"):
        return NOWHERE
    return progress["phase"], progress["done"]


def _replicas(session: int) -> Iterator[psutil.Process]:
    return (each for each in processes_of(session) if "ServeReplica:" in " ".join(each.cmdline()))
