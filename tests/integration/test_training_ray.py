"""A job under Ray Train: two workers, mistakes that come back as sentences, placement with a deadline, restarts."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import ray

from configs.errors import DeadlineExceeded, UserError
from tests.unit.training.tiny import make_job
from training.job import JobDevice, StepMetrics, TrainJob
from training.loop import train
from training.parallel import joined_world
from training.trainer import fit, fit_jobs

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


def test_fit_jobs_two_workers_train_each_job_as_one_process_does(tmp_path: Path) -> None:
    jobs = [make_job(tmp_path / str(seed), seed=seed, num_workers=2) for seed in (0, 1)]
    seen: list[tuple[str, int]] = []

    def on_metrics(job: TrainJob, metrics: StepMetrics) -> None:
        seen.append((job.output_dir, metrics.step))

    results = fit_jobs(jobs, max_failures=0, worker_start_deadline_s=60, on_metrics=on_metrics)
    assert seen == [(job.output_dir, step) for job in jobs for step in range(1, 13)]
    for job, result in zip(jobs, results, strict=True):
        alone = replace(job, output_dir=f"{job.output_dir}-alone")
        with joined_world(JobDevice.CPU) as world:
            train(alone, lambda _: None, world)
        assert losses_of(job) == pytest.approx(losses_of(alone), abs=1e-4)
        assert Path(result.hf_dir, "model.safetensors").is_file()
        names = {"checkpoints", "hf", "job.json", "metrics.jsonl", "result.json"}
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


def test_fit_more_workers_than_the_cluster_holds_gives_up_at_the_deadline(tmp_path: Path) -> None:
    job = make_job(tmp_path, num_workers=3)
    with pytest.raises(DeadlineExceeded, match="num_workers=3 wants 3 CPUs and after 2 s the cluster has 2 CPUs free"):
        fit(job, max_failures=0, worker_start_deadline_s=2)
