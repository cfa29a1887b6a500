"""A head and any number of worker nodes on one machine, each of them a real raylet with one echo replica.

What is not under test is left out, as all of it shares the machine's cores and memory: the dashboard, log monitors,
metrics, and workers that are started beforehand. A raylet's two agents stay, as it does not start without them.
"""

import logging
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil

from benchmarks.echo import EchoScript, deploy
from benchmarks.ray_cluster import Home, ray_home
from benchmarks.run_echo import APP_NAME, make_tokenizer

LOOK_UPS = "STILLHOUSE_BENCHMARK_LOOK_UPS"  # names the directory where clients note them
RESOURCE = "teacher"
HEAD_CPUS = 4  # logical, for the clients
OBJECT_STORE_BYTES = 76 * 2**20  # Ray wants no less than 75 MiB; of what is not used none is taken
STARTED_AT_ONCE = 16  # replicas; more of them on few cores would not register with their raylet in time
REPLICAS_S = 240.0
POLL_S = 0.25
SYSTEM_CONFIG = {
    "enable_worker_prestart": False,
    "prestart_worker_first_driver": False,
    "enable_metrics_collection": False,
    "worker_register_timeout_seconds": 240,
    "health_check_initial_delay_ms": 60_000,  # a node that starts beside sixty others answers late
    "health_check_timeout_ms": 30_000,
}


class NodeCluster:
    """Use `node_cluster`, which also ends it."""

    def __init__(self, home: Home) -> None:
        import ray
        from ray.cluster_utils import Cluster

        self.directory = home.directory
        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": HEAD_CPUS,
                "object_store_memory": 4 * OBJECT_STORE_BYTES,
                "include_dashboard": False,
                "include_log_monitor": False,
                "temp_dir": str(home.directory / "ray"),
                "_system_config": SYSTEM_CONFIG,
            },
        )
        home.ends.callback(self.cluster.shutdown)
        ray.init(self.cluster.address, log_to_driver=False, logging_level=logging.ERROR, namespace="serve")

    def grow(self, nodes: int, script: EchoScript) -> None:
        """Add worker nodes until there are so many, then replicas, a few at a time."""
        while len(self.cluster.worker_nodes) < nodes:
            self.cluster.add_node(
                num_cpus=1,
                resources={RESOURCE: 1},
                object_store_memory=OBJECT_STORE_BYTES,
                include_log_monitor=False,
            )
        replicas = _running_replicas()
        while replicas < nodes:
            replicas = min(nodes, replicas + STARTED_AT_ONCE)
            _deploy(script, replicas)

    def cpu_s(self) -> Counter[str]:
        """CPU seconds so far of what is alive, by what it is."""
        simulated = {node.all_processes["raylet"][0].process.pid for node in self.cluster.worker_nodes}
        used: Counter[str] = Counter()
        for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
            with suppress(psutil.Error):
                times = process.cpu_times()
                family = {process.pid, process.ppid()}
                group = "nodes" if family & simulated else _group(process)
                used[group] += times.user + times.system
        return used

    def pss_mib(self) -> Counter[str]:
        """Memory (MiB, pages that are shared counted once), by what it is."""
        simulated = {node.all_processes["raylet"][0].process.pid for node in self.cluster.worker_nodes}
        used: Counter[str] = Counter()
        for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
            with suppress(psutil.Error):
                family = {process.pid, process.ppid()}
                group = "nodes" if family & simulated else _group(process)
                used[group] += process.memory_full_info().pss / 2**20
        return used


@contextmanager
def node_cluster() -> Iterator[NodeCluster]:
    """The head alone at first; it and all that belongs to it is gone when the block ends."""
    with ray_home("nodes", {"RAY_memory_monitor_refresh_ms": "0"}) as home:
        look_ups = home.directory / "look-ups"
        look_ups.mkdir()
        os.environ[LOOK_UPS] = str(look_ups)
        cluster = NodeCluster(home)
        make_tokenizer(home.directory / "tokenizer")
        yield cluster


def _deploy(script: EchoScript, replicas: int) -> None:
    options: dict[str, Any] = {
        "num_replicas": replicas,
        # Serve draws another version for each deployment otherwise, and replaces the replicas that are up.
        "version": "echo",
        "_internal": True,
        "ray_actor_options": {"num_cpus": 1, "resources": {RESOURCE: 1}},
        "health_check_period_s": 10,
        "health_check_timeout_s": 60,
    }
    deploy(APP_NAME, script, scaling=options, wait=False)
    give_up_at = time.monotonic() + REPLICAS_S
    while (running := _running_replicas()) < replicas:
        if time.monotonic() > give_up_at:
            raise TimeoutError(f"only {running} of {replicas} replicas were up after {REPLICAS_S:.0f} s")
        time.sleep(POLL_S)


def _running_replicas() -> int:
    from ray import serve
    from ray.serve.schema import ReplicaState

    app = serve.status().applications.get(APP_NAME)
    return sum(each.replica_states.get(ReplicaState.RUNNING, 0) for each in app.deployments.values()) if app else 0


def _group(process: psutil.Process) -> str:
    if process.pid == os.getpid():
        return "driver"
    title = " ".join(process.cmdline())
    marks = {
        "gcs_server": "gcs",
        "/raylet ": "raylet",
        "ray::ServeController": "controller",
        "ray::MapWorker": "clients",
    }
    return next((group for mark, group in marks.items() if mark in title), "other")
