"""A cloud takes a teacher's node back, with notice: what is being written is finished or made again elsewhere."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.echo import EchoScript, tokens_made
from configs.schema import DeadlinesConfig
from tests.chaos.driver import DriverJob, make_prompts
from tests.chaos.harness import OBJECT_STORE_BYTES, Chaos, Driver, assert_exactly_once, read_completions, watch
from tests.chaos.schedules import has_begun

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(280)]

NAME = "preempted"
SPOT = "spot"  # one replica a node, and none elsewhere; such a node has no CPU, so no client comes
END_S = 60.0


@pytest.fixture
def spot_nodes(chaos: Chaos) -> Iterator[list[Any]]:
    """The nodes of the test; a first one is there."""
    nodes = [add_spot_node(chaos)]
    yield nodes
    chaos.delete(NAME)
    for node in nodes:
        if node in chaos.cluster.worker_nodes:
            chaos.cluster.remove_node(node, allow_graceful=False)


def add_spot_node(chaos: Chaos) -> Any:
    return chaos.cluster.add_node(num_cpus=0, resources={SPOT: 1}, object_store_memory=OBJECT_STORE_BYTES)


def deploy_on_spot(chaos: Chaos, script: EchoScript) -> None:
    """One replica, with the time to finish what it writes that the deployments of a run have."""
    actor = {"num_cpus": 0, "resources": {SPOT: 1}}
    options = {"num_replicas": 1, "graceful_shutdown_timeout_s": DeadlinesConfig().request, "ray_actor_options": actor}
    chaos.deploy(NAME, script, scaling=options)


def give_notice(chaos: Chaos, node: Any, notice_s: float) -> None:
    """What a cloud's agent tells Ray of a node that it takes back."""
    import ray
    from ray.core.generated import autoscaler_pb2

    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    deadline_ms = int((time.time() + notice_s) * 1000)
    client = ray._raylet.GcsClient(address=chaos.address)
    accepted, why = client.drain_node(node.node_id, reason, "taken back", deadline_ms)
    assert accepted, why


def begin(chaos: Chaos, nodes: list[Any], num_prompts: int, latency_s: float, name: str) -> tuple[DriverJob, Driver]:
    """A run whose one replica is on the first node, and of which some rows have been made; another node is there."""
    directory = chaos.temp / name
    tally_of(directory).mkdir(parents=True)
    deploy_on_spot(chaos, EchoScript(latency_s=latency_s, tally=str(tally_of(directory))))
    nodes.append(add_spot_node(chaos))
    job = DriverJob(chaos.address, NAME, str(directory), make_prompts(num_prompts), window_rows=24)
    driver = chaos.start(job)
    driver.wait_for(has_begun)
    return job, driver


def tally_of(run_dir: Path | str) -> Path:
    return Path(run_dir) / "tally"


def replicas_at_work(job: DriverJob) -> int:
    """Replicas that have answered so far."""
    return len(list(tally_of(job.run_dir).glob("*.tokens")))


def test_noticed_node_finishes_what_it_writes_and_another_makes_the_rest(chaos: Chaos, spot_nodes: list[Any]) -> None:
    job, driver = begin(chaos, spot_nodes, 160, 0.5, "noticed")
    give_notice(chaos, spot_nodes[0], 20.0)
    watch(lambda: replicas_at_work(job), lambda: replicas_at_work(job) == 2, END_S)
    chaos.cluster.remove_node(spot_nodes[0], allow_graceful=False)
    assert driver.wait(END_S) == 0, driver.describe()
    assert_exactly_once(job)
    # A call takes half a second, which the notice leaves: nothing had to be made twice.
    assert tokens_made(tally_of(job.run_dir)) == sum(row["num_completion_tokens"] for row in read_completions(job))


def test_node_that_goes_while_it_writes_costs_no_row(chaos: Chaos, spot_nodes: list[Any]) -> None:
    job, driver = begin(chaos, spot_nodes, 56, 5.0, "cut-short")
    give_notice(chaos, spot_nodes[0], 2.0)
    watch(lambda: chaos.count_replicas(NAME), lambda: chaos.count_replicas(NAME) == 2, END_S)
    chaos.cluster.remove_node(spot_nodes[0], allow_graceful=False)
    assert driver.wait(END_S) == 0, driver.describe()
    assert_exactly_once(job)
    assert replicas_at_work(job) == 2
