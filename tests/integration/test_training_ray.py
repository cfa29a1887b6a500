"""A job under Ray Train: two workers, mistakes that come back as sentences, placement with a deadline, restarts."""

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import ray

from configs.errors import DeadlineExceeded, UserError
from tests.unit.training.tiny import make_job
from training.job import JobDevice, StepMetrics, TrainJob
from training.loop import train
from training.parallel import joined_world
from training.trainer import _RAY_TRAIN_ENVIRONMENT, fit, fit_jobs

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_AUTH_MODE", "disabled")
        environment.setenv("OMP_NUM_THREADS", "1")
        # Ray's sockets live below it, and their paths may have 107 bytes only.
        directory = tmp_path_factory.mktemp("ray")
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=100 << 20,
            _temp_dir=str(directory),
            log_to_driver=False,
        )
        yield
        ray.shutdown()


def losses_of(job: TrainJob) -> list[float]:
    return [json.loads(line)["loss"] for line in Path(job.output_dir, "metrics.jsonl").read_text().splitlines()]


def training_workers() -> list[psutil.Process]:
    """Return the training workers of this process's own cluster; one that ended and is not reaped yet is none."""
    children = psutil.Process().children(recursive=True)
    return [p for p in children if "RayTrainWorker" in " ".join(p.as_dict(["cmdline"])["cmdline"] or [])]


def test_fit_jobs_worker_killed_and_restarted_ends_with_the_losses_of_one_process(tmp_path: Path) -> None:
    settings = {"num_workers": (1, 2), "max_steps": 150, "checkpoint_every": 20, "evaluate_every": 150}
    jobs = [make_job(tmp_path / str(seed), seed=seed, **settings) for seed in (0, 1)]
    seen: list[tuple[str, int]] = []

    def on_metrics(job: TrainJob, metrics: StepMetrics) -> None:
        if not seen:
            training_workers()[-1].kill()
        seen.append((job.output_dir, metrics.step))

    results = fit_jobs(jobs, max_failures=1, worker_start_deadline_s=60, on_metrics=on_metrics)
    assert {*seen} == {(job.output_dir, step) for job in jobs for step in range(1, 151)}
    for job, result in zip(jobs, results, strict=True):
        alone = replace(job, output_dir=f"{job.output_dir}-alone")
        with joined_world(JobDevice.CPU) as world:
            train(alone, lambda _: None, world)
        # Summing over two ranks rounds otherwise than over one, and 150 steps let that grow.
        assert losses_of(job) == pytest.approx(losses_of(alone), rel=1e-2)
        assert losses_of(job)[:20] == pytest.approx(losses_of(alone)[:20], abs=1e-4)
        assert Path(result.hf_dir, "model.safetensors").is_file()
        names = {"checkpoints", "hf", "job.json", "metrics.jsonl", "result.json", "tensorboard"}
        assert {path.name for path in Path(job.output_dir).iterdir()} == names
    # Done once, it needs neither workers nor data.
    Path(jobs[0].files[0].path).unlink()
    assert fit(jobs[0], max_failures=0, worker_start_deadline_s=1) == results[0]


def test_fit_mistake_in_a_worker_comes_back_with_its_sentence_and_without_retries(tmp_path: Path) -> None:
    job = make_job(tmp_path, sequence_length=65, num_workers=1)
    with pytest.raises(
        UserError, match=r"training\.sequence_length \(65\) must not exceed the student's context of 64"
    ):
        fit(job, max_failures=3, worker_start_deadline_s=60)
    assert not Path(job.output_dir, "ray_train").exists()


def test_fit_interrupted_stops_the_workers_and_raises_keyboard_interrupt(tmp_path: Path) -> None:
    job = make_job(tmp_path, max_steps=100_000, num_workers=2)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit(
            job,
            max_failures=3,
            worker_start_deadline_s=60,
            on_metrics=lambda metrics: os.kill(os.getpid(), signal.SIGINT) if metrics.step == 1 else None,
        )
    assert signal.getsignal(signal.SIGINT) is handler
    assert not training_workers()
    assert not Path(job.output_dir, "result.json").exists()


@pytest.mark.parametrize(("num_workers", "shown"), [(3, "3"), ((3, 4), r"\[3,4\]")])
def test_fit_more_workers_than_the_cluster_holds_gives_up_at_the_deadline(
    tmp_path: Path, num_workers: int | tuple[int, int], shown: str
) -> None:
    job = make_job(tmp_path, num_workers=num_workers)
    sentence = f"num_workers={shown} wants 3 CPUs and after 2 s the cluster has 2 CPUs free"
    with pytest.raises(DeadlineExceeded, match=sentence):
        fit(job, max_failures=0, worker_start_deadline_s=2)


@ray.remote(num_cpus=1)
class Hoarder:
    """Takes the place of a worker."""


def test_fit_place_of_a_worker_lost_gives_up_at_the_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_RAY_TRAIN_ENVIRONMENT, "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "2")
    hoarders = []

    def on_metrics(_: StepMetrics) -> None:
        if not hoarders:
            hoarders.append(Hoarder.remote())
            training_workers()[-1].kill()

    job = make_job(tmp_path, num_workers=2, max_steps=100_000)
    with pytest.raises(DeadlineExceeded, match="wants 2 CPUs and after 5 s the cluster has 1 CPUs free"):
        fit(job, max_failures=3, worker_start_deadline_s=5, on_metrics=on_metrics)
    ray.kill(hoarders[0])
    assert not training_workers()
