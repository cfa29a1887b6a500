"""From the teacher to the student on a cluster with labelled nodes: what is waited for, and who is named in vain."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray import serve
from ray.cluster_utils import Cluster
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.util.placement_group import placement_group, remove_placement_group

from cluster.context import RunContext
from cluster.phases.hand_over import hand_over
from cluster.progress import Progress
from cluster.run_dir import RunDir
from cluster.session import Session
from cluster.teachers import app_name
from cluster.training_run import run_training
from configs.errors import DeadlineExceeded
from configs.schema import Device
from tests.unit.configs.trees import make_config
from tests.unit.training.tiny import make_job

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

STUDENT = {"pool": "student"}


@serve.deployment(
    num_replicas=1,
    ray_actor_options={"num_cpus": 0, "num_gpus": 1},
    placement_group_bundles=[{"GPU": 1}],
    graceful_shutdown_timeout_s=2,
)
class Teacher:
    """Holds a GPU, and takes a moment to let go of it."""

    def __call__(self) -> str:
        return "here"

    async def __del__(self) -> None:
        import asyncio

        await asyncio.sleep(1)


@ray.remote(num_cpus=0, num_gpus=1, label_selector=STUDENT)
class Foreign:
    """Somebody else's."""

    def is_there(self) -> bool:
        return True


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """A node for the teacher and one for the student, with a GPU each as far as Ray knows."""
    # Ray's sockets live below it, and their paths may have 107 bytes only.
    with tempfile.TemporaryDirectory(prefix="ray-") as directory, pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_AUTH_MODE", "disabled")
        environment.setenv("RAY_TMPDIR", directory)
        nodes = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 1, "include_dashboard": False, "temp_dir": f"{directory}/ray"},
        )
        for labels in ({"pool": "teacher"}, STUDENT):
            nodes.add_node(num_cpus=1, num_gpus=1, labels=labels)
        ray.init(address=nodes.address, log_to_driver=False)
        serve.start(proxy_location="Disabled")
        yield
        serve.shutdown()
        ray.shutdown()
        nodes.shutdown()


@pytest.fixture
def ctx(tmp_path: Path) -> RunContext:
    config = make_config(run_dir=str(tmp_path / "run"), deadlines__hand_over=5.0, deadlines__worker_start=2.0)
    ctx = RunContext(config, RunDir.of(config), Progress(config.name, RunDir.of(config)))
    ctx._session = Session(embedded=False)
    return ctx


def test_hand_over_waits_until_the_teachers_gpu_is_free(ctx: RunContext) -> None:
    name = app_name(ctx.config, ctx.config.main_teacher)
    serve.run(Teacher.bind(), name=name, route_prefix=None)
    record = hand_over(ctx)
    assert [words.split("#")[0].split(" with ")[0] for words in record["waited_for"]] == [
        "1 replica(s) of Teacher RUNNING",
        f"placement group SERVE_REPLICA::{name}",
    ]
    assert name not in serve.status().applications
    both = placement_group([{"GPU": 1}] * 2)
    assert both.wait(10)
    remove_placement_group(both)


def test_hand_over_names_what_still_holds_a_gpu_at_its_deadline(ctx: RunContext) -> None:
    name = ReplicaID("ab12", DeploymentID(name="Teacher", app_name=app_name(ctx.config, ctx.config.main_teacher)))
    left = placement_group([{"GPU": 1}], name=name.to_full_id_str())
    assert left.wait(30)
    with pytest.raises(DeadlineExceeded, match=r"5 s \(deadlines.hand_over\); still held: placement group .*#Teacher#"):
        hand_over(ctx)
    remove_placement_group(left)
    assert not ctx.run_dir.phase_record("hand_over")


def test_training_without_a_place_on_the_students_nodes_names_who_holds_them(ctx: RunContext, tmp_path: Path) -> None:
    foreign = Foreign.remote()
    assert ray.get(foreign.is_there.remote(), timeout=60)
    with pytest.raises(DeadlineExceeded) as error:
        run_training(ctx, [make_job(tmp_path, num_workers=1)], Device.GPU, labels=STUDENT)
    ray.kill(foreign)
    assert f"1 GPUs on nodes with the labels {STUDENT}" in str(error.value)
    assert f"held now: actor Foreign of job {ray.get_runtime_context().get_job_id()} (0 CPU, 1 GPU)" in str(error.value)
