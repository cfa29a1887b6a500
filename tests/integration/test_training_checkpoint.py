"""Checkpoints: written while steps go on, never half counted, written at once on notice, resumed at any size."""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from configs.schema import OptimizerConfig
from tests.integration.ranks import FINISHED, MISTAKE, PREEMPTED, curve_of, run_ranks
from tests.unit.training.tiny import make_job
from training import storage
from training.checkpoint import CheckpointError
from training.corpus import sha256_of
from training.job import JobDevice, StepMetrics, TrainJob
from training.loop import train
from training.parallel import joined_world

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]


class GatedFileSystem(MemoryFileSystem):  # type: ignore[misc]
    """An object store that is as slow as the test wants, or full."""

    protocol = "gated"
    store: dict[str, Any] = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012
    gate = threading.Event()
    is_full = False

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        if "step-00000005" in path and mode == "wb":
            if self.is_full:
                raise OSError("no space left")
            assert self.gate.wait(60), "no step was taken while the checkpoint was being written"
        return super()._open(path, mode, **kwargs)


@pytest.fixture
def gated() -> Iterator[type[GatedFileSystem]]:
    fsspec.register_implementation("gated", GatedFileSystem, clobber=True)
    GatedFileSystem.gate, GatedFileSystem.is_full = threading.Event(), False
    yield GatedFileSystem
    GatedFileSystem.store.clear()
    GatedFileSystem.pseudo_dirs[:] = [""]


def run(job: TrainJob, on_step: Any = lambda _: None) -> None:
    with joined_world(JobDevice.CPU) as world:
        train(job, on_step, world)


def steps_complete(job: TrainJob) -> list[int]:
    """Return the steps of the checkpoints that count, each checked file by file."""
    manifests = sorted(Path(job.output_dir, "checkpoints").glob("*/complete.json"))
    for manifest in manifests:
        for name, digest in json.loads(manifest.read_text())["files"].items():
            assert sha256_of(str(manifest.parent / name)) == digest
    return [int(manifest.parent.name.removeprefix("step-")) for manifest in manifests]


def test_train_slow_storage_steps_go_on_while_a_checkpoint_is_written(
    tmp_path: Path, gated: type[GatedFileSystem]
) -> None:
    job = replace(make_job(tmp_path), output_dir="gated://bucket/out")
    seen: dict[int, bool] = {}
    blocked: list[float] = []

    def on_step(metrics: StepMetrics) -> None:
        seen[metrics.step] = storage.exists(f"{job.output_dir}/checkpoints/step-00000005/complete.json")
        blocked.append(metrics.checkpoint_blocked_s)
        if metrics.step == 9:  # the next save, after step 10, would wait for it
            gated.gate.set()

    run(job, on_step)
    assert [step for step in range(6, 10) if seen[step]] == []
    assert seen[11]
    assert blocked[5] > 0 == blocked[3]
    assert storage.list_names(f"{job.output_dir}/checkpoints") == ["step-00000010", "step-00000012"]


def test_train_checkpoint_that_cannot_be_written_is_raised_by_the_next_save(
    tmp_path: Path, gated: type[GatedFileSystem]
) -> None:
    job = replace(make_job(tmp_path), output_dir="gated://bucket/out")
    gated.is_full = True
    steps: list[int] = []
    with pytest.raises(CheckpointError, match="rank 0: no space left"):
        run(job, lambda metrics: steps.append(metrics.step))
    assert steps[-1] == 10
    assert not storage.exists(f"{job.output_dir}/result.json")


def test_train_checkpoints_written_in_step_end_like_those_beside_it(tmp_path: Path) -> None:
    beside, in_step = make_job(tmp_path / "a"), make_job(tmp_path / "b", async_checkpoint=False)
    run(beside)
    run(in_step)
    assert curve_of(beside) == curve_of(in_step)
    assert steps_complete(beside) == steps_complete(in_step) == [10, 12]


def test_train_two_ranks_on_notice_of_one_stop_at_the_same_step_and_resume_bit_by_bit(tmp_path: Path) -> None:
    whole, halves = (make_job(tmp_path / name, checkpoint_every=100) for name in ("whole", "halves"))
    assert run_ranks(whole, 2) == [FINISHED, FINISHED]
    assert run_ranks(halves, 2, signal_at=6) == [PREEMPTED, PREEMPTED]
    assert steps_complete(halves) == [7]
    assert run_ranks(halves, 2) == [FINISHED, FINISHED]
    assert curve_of(halves) == curve_of(whole)
    assert [step for step, _, _ in curve_of(halves)] == list(range(1, 13))


def test_train_two_then_one_then_two_ranks_have_the_losses_of_an_undisturbed_run(tmp_path: Path) -> None:
    whole, parts = (make_job(tmp_path / name, checkpoint_every=100) for name in ("whole", "parts"))
    assert run_ranks(whole, 2) == [FINISHED, FINISHED]
    assert run_ranks(parts, 2, signal_at=3) == [PREEMPTED, PREEMPTED]
    assert run_ranks(parts, 1, signal_at=3) == [PREEMPTED]
    assert steps_complete(parts) == [4, 8]
    assert run_ranks(parts, 2) == [FINISHED, FINISHED]
    losses, expected = ([loss for _, loss, _ in curve_of(job)] for job in (parts, whole))
    assert losses == pytest.approx(expected, abs=1e-5)


def test_train_rank_killed_the_other_ends_and_at_most_one_interval_is_lost(tmp_path: Path) -> None:
    whole, killed = (make_job(tmp_path / name, checkpoint_every=3) for name in ("whole", "killed"))
    assert run_ranks(whole, 2) == [FINISHED, FINISHED]
    survivor, victim = run_ranks(killed, 2, signal_at=8, number=signal.SIGKILL)
    assert victim == -signal.SIGKILL
    assert survivor not in (FINISHED, PREEMPTED)
    assert steps_complete(killed)[-1] >= 3  # that of step 6 was in flight or done
    assert run_ranks(killed, 2) == [FINISHED, FINISHED]
    assert curve_of(killed) == curve_of(whole)


def test_train_two_ranks_gradient_that_is_not_finite_leaves_the_last_checkpoint_intact(tmp_path: Path) -> None:
    optimizer = OptimizerConfig(learning_rate=1e38, max_grad_norm=1e38, warmup_ratio=0.0)
    job = make_job(tmp_path, optimizer=optimizer, checkpoint_every=1, evaluate_every=100)
    assert run_ranks(job, 2) == [MISTAKE, MISTAKE]
    sentences = [Path(job.output_dir, f"error-{rank}").read_text() for rank in range(2)]
    assert sentences[0] == sentences[1]
    last = len(curve_of(job))
    assert f"step {last + 1} is not finite" in sentences[0]
    assert steps_complete(job)[-1] == last


def test_program_given_sigterm_ends_with_its_status_and_a_checkpoint(tmp_path: Path) -> None:
    job = make_job(tmp_path, max_steps=100_000, checkpoint_every=100_000, evaluate_every=100_000)
    path = tmp_path / "job.json"
    path.write_text(job.to_json())
    program = subprocess.Popen(
        [sys.executable, "-m", "training", str(path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert program.stdout is not None
    assert program.stdout.readline().startswith("step 1/100000")
    program.terminate()
    _, error = program.communicate(timeout=60)
    assert program.returncode == 143
    (step,) = steps_complete(job)
    assert f"stopped after step {step} of 100000, with a checkpoint; run the same command to go on" in error
