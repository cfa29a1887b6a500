"""An elastic group of Ray Train workers: nodes that come, go with and without notice, and do not fill a group."""

import json
import queue
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import get_or_create_autoscaling_coordinator

from configs.errors import DeadlineExceeded
from configs.schema import OptimizerConfig
from tests.integration.ranks import FINISHED, run_ranks
from tests.unit.training.tiny import make_job
from training.job import JobDevice, StepMetrics, TrainJob
from training.loop import train
from training.parallel import joined_world
from training.trainer import Stopped, fit, fit_jobs

pytestmark = [pytest.mark.integration, pytest.mark.slow]

NOTICE_SECONDS = 8


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Two nodes of one CPU each."""
    # Ray's sockets live below it, and their paths may have 107 bytes only.
    with tempfile.TemporaryDirectory(prefix="ray-") as directory, pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_AUTH_MODE", "disabled")
        environment.setenv("OMP_NUM_THREADS", "1")
        environment.setenv("RAY_TMPDIR", directory)
        nodes = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 1, "include_dashboard": False, "temp_dir": f"{directory}/ray"},
        )
        nodes.add_node(num_cpus=1)
        ray.init(address=nodes.address, log_to_driver=False)
        yield nodes
        ray.shutdown()
        nodes.shutdown()


def training_workers() -> list[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return [p for p in children if "RayTrainWorker" in " ".join(p.as_dict(["cmdline"])["cmdline"] or [])]


def drain(address: str, node_id: str) -> None:
    """Do to a node what a cloud does to one it takes back."""
    deadline_ms = int((time.time() + NOTICE_SECONDS) * 1000)
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    accepted, why = ray._raylet.GcsClient(address=address).drain_node(node_id, reason, "taken back", deadline_ms)
    assert accepted, why


def losses_of(job: TrainJob) -> list[float]:
    return [json.loads(line)["loss"] for line in Path(job.output_dir, "metrics.jsonl").read_text().splitlines()]


def test_fit_elastic_group_shrinks_on_notice_and_grows_again_with_the_losses_of_an_undisturbed_run(
    tmp_path: Path, cluster: Cluster
) -> None:
    job = make_job(
        tmp_path,
        num_rows=1000,
        num_workers=(1, 2),
        batch_sequences=32,
        micro_batch_sequences=1,
        max_steps=120,
        checkpoint_every=10,
        keep_checkpoints=100,
        evaluate_every=1000,
        optimizer=OptimizerConfig(learning_rate=1e-4),
    )
    lines: queue.Queue[StepMetrics | None] = queue.Queue()
    groups: list[set[int]] = []  # process ids of the workers, a group at a time
    with ThreadPoolExecutor(1) as executor:  # Ray starts nodes in the main thread only
        fitted = executor.submit(fit, job, max_failures=1, worker_start_deadline_s=60, on_metrics=lines.put)
        fitted.add_done_callback(lambda _: lines.put(None))
        while lines.get(timeout=100) is not None:
            workers = [worker for worker in training_workers() if not any(worker.pid in pids for pids in groups)]
            if not workers:
                continue
            groups.append({worker.pid for worker in workers})
            if len(groups) == 1:
                (node,) = cluster.worker_nodes
                drain(cluster.address, node.node_id)
            elif len(groups) == 2:
                workers[0].send_signal(signal.SIGSTOP)
                cluster.remove_node(node, allow_graceful=False)
                cluster.add_node(num_cpus=1)
                # Ray would see the node at its next look, within 20 s.
                coordinator = get_or_create_autoscaling_coordinator()
                ray.get(coordinator.get_reserved_resources.remote("test", recompute=True))
                workers[0].kill()
        result = fitted.result()
    assert result.num_steps == 120
    assert [len(pids) for pids in groups] == [2, 1, 2]
    whole = replace(job, output_dir=f"{job.output_dir}-whole")
    assert run_ranks(whole, 2) == [FINISHED, FINISHED]
    assert losses_of(job) == pytest.approx(losses_of(whole), abs=1e-5)


@pytest.mark.parametrize("is_stopped", [False, True])
def test_fit_elastic_group_below_its_fewest_workers_waits_for_the_deadline_or_a_stop_alone(
    tmp_path: Path, cluster: Cluster, is_stopped: bool
) -> None:
    job = make_job(tmp_path, num_workers=(2, 3), max_steps=100_000)
    is_lost = threading.Event()

    def lose_a_node(*_: object) -> None:
        if not is_lost.is_set():
            (node,) = cluster.worker_nodes
            cluster.remove_node(node, allow_graceful=False)
            is_lost.set()

    with pytest.raises(Stopped if is_stopped else DeadlineExceeded):
        fit_jobs(
            [job],
            max_failures=3,
            worker_start_deadline_s=600 if is_stopped else 10,
            on_metrics=lose_a_node,
            should_stop=lambda: is_stopped and is_lost.is_set(),
        )
    assert is_lost.is_set()
    assert not training_workers()


def test_fit_elastic_tensor_parallel_takes_whole_groups_with_the_losses_of_one_process(
    tmp_path: Path, cluster: Cluster
) -> None:
    cluster.add_node(num_cpus=1)  # which fills no group
    settings = {"max_steps": 6, "optimizer": OptimizerConfig(learning_rate=1e-3)}
    job = make_job(tmp_path / "together", num_workers=(2, 4), tensor_parallel_size=2, **settings)
    most = 0

    def count(_: StepMetrics) -> None:
        nonlocal most
        most = max(most, len(training_workers()))

    fit(job, max_failures=0, worker_start_deadline_s=60, on_metrics=count)
    assert most == 2
    alone = make_job(tmp_path / "alone", **settings)
    with joined_world(JobDevice.CPU) as world:
        train(alone, lambda _: None, world)
    assert losses_of(job) == pytest.approx(losses_of(alone), abs=1e-5)
