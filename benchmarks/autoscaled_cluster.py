"""A head whose worker nodes come and go by Ray's own autoscaler, each a real raylet on this machine.

Ray's `AutoscalingCluster` does not start from the wheel, which lacks its template, and begins and ends with `ray stop`,
which takes every Ray on the machine along. Here the configuration is our own and the head is a child of this process;
what is ended are this process's descendants. So that a node whose starter has ended stays one, Linux is told to hand it
to this process and not to the machine's first.
"""

import ctypes
import logging
import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import psutil
import yaml

from benchmarks.ray_cluster import ray_home
from benchmarks.run_echo import make_tokenizer

NODE_TYPE = RESOURCE = "teacher"  # the resource keeps replicas off the head
HEAD_TYPE = "ray.head.default"  # as Ray's simulated cloud calls its own
HEAD_CPUS = 4  # logical, for the clients
OBJECT_STORE_BYTES = 80 * 2**20
PR_SET_CHILD_SUBREAPER = 36  # of <linux/prctl.h>
# Keys that Ray fills in for its own providers alone.
NO_DEFAULTS = ("cluster_synced_files", "setup_commands", "head_setup_commands", "worker_setup_commands")
LOOK_S = 0.2
LOG_LINES = 30
END_S = 20.0


@dataclass(frozen=True, slots=True)
class Look:
    """The worker nodes at a moment (seconds of the clock), and whether a replica is on each.

    ``Look(1700000000.0, {"ff01": True, "ff02": False})``: two nodes, the second has nothing to do.
    """

    at: float
    nodes: dict[str, bool]


@dataclass(frozen=True, slots=True)
class Shape:
    """What the simulated cloud is like: at most so many worker nodes, seconds until one comes, and until it may go."""

    nodes: int
    provider_delay_s: float
    idle_timeout_s: float
    look_every_s: int  # Ray takes whole seconds


def autoscaling_config(shape: Shape, address: str, events: Path) -> dict[str, Any]:
    """The file that Ray's autoscaler reads: one kind of node, none of them to begin with."""
    return {
        "cluster_name": "benchmark",
        "max_workers": shape.nodes,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": shape.idle_timeout_s / 60,
        "provider": {
            "type": "external",
            "module": "benchmarks.slow_provider.SlowProvider",
            "disable_node_updaters": True,  # a raylet is all that a node is: there is nothing to install
            "disable_launch_config_check": True,
            "launch_multiple": True,
            "gcs_address": address,
            "delay_s": shape.provider_delay_s,
            "events": str(events),
        },
        "head_node_type": HEAD_TYPE,
        "available_node_types": {
            HEAD_TYPE: {"node_config": {}, "resources": {"CPU": HEAD_CPUS}, "max_workers": 0},
            NODE_TYPE: {
                "node_config": {},
                "resources": {"CPU": 1, RESOURCE: 1, "object_store_memory": OBJECT_STORE_BYTES},
                "labels": {"stillhouse/pool": "teacher"},
                "min_workers": 0,
                "max_workers": shape.nodes,
            },
        },
        **{key: [] for key in NO_DEFAULTS},
    }


class AutoscaledCluster:
    """Use `autoscaled_cluster`, which also ends it. Looks at the worker nodes several times a second."""

    def __init__(self, directory: Path, shape: Shape) -> None:
        import ray
        from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID
        from ray.cluster_utils import Cluster

        self.directory, self.events, self.looks = directory, directory / "events", list[Look]()
        self.events.touch()
        port = _free_port()
        config = directory / "autoscaling.yaml"
        config.write_text(yaml.safe_dump(autoscaling_config(shape, f"127.0.0.1:{port}", self.events)))
        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": HEAD_CPUS,
                "object_store_memory": OBJECT_STORE_BYTES,
                "include_dashboard": False,
                "include_log_monitor": False,
                "temp_dir": str(directory / "ray"),
                "gcs_server_port": port,
                "autoscaling_config": str(config),
                # By these the autoscaler knows the head, which it has not started.
                "env_vars": {
                    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
                    "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
                    "RAY_NODE_TYPE_NAME": HEAD_TYPE,
                },
            },
        )
        ray.init(self.cluster.address, log_to_driver=False, logging_level=logging.ERROR, namespace="serve")
        self._stop, self._thread = Event(), ThreadPoolExecutor(1, thread_name_prefix="looks")
        self._looking = self._thread.submit(self._look_often)

    def wait_for(self, is_so: Callable[[Look], bool], deadline_s: float, what: str) -> None:
        """Until a look fulfils a condition; ``what`` finishes the sentence "there was no …"."""
        give_up_at = time.monotonic() + deadline_s
        while not (self.looks and is_so(self.looks[-1])):
            if self._looking.done():
                self._looking.result()  # raises what ended it
            if time.monotonic() > give_up_at:
                raise TimeoutError(f"there was no {what} after {deadline_s:.0f} s; the last look was {self.looks[-1:]}")
            time.sleep(LOOK_S / 2)

    def stop_looking(self) -> None:
        """No more looks are added."""
        self._stop.set()
        self._thread.shutdown()
        self._looking.result()

    def _look_often(self) -> None:
        while not self._stop.wait(LOOK_S):
            self.looks.append(_look(self.cluster.address))


@contextmanager
def autoscaled_cluster(shape: Shape) -> Iterator[AutoscaledCluster]:
    """The head alone at first; it and all that belongs to it is gone when the block ends."""
    environment = {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # nodes take the loopback address, as on a laptop
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": str(shape.look_every_s),
        "AUTOSCALER_METRIC_PORT": "0",  # a free one
        "RAY_gcs_rpc_server_reconnect_timeout_s": "10",  # a node whose head is gone ends itself
        "RAY_memory_monitor_refresh_ms": "0",
    }
    with ray_home("autoscaler", environment) as home:
        import ray  # after the environment, which it reads

        adopt_orphans()
        before, cluster = set(_descendants()), None
        try:
            make_tokenizer(home.directory / "tokenizer")
            cluster = AutoscaledCluster(home.directory, shape)
            yield cluster
        except Exception as error:
            error.add_note(f"the autoscaler's log ends with:\n{_log_end(home.directory)}")
            raise
        finally:
            if cluster is not None:
                with suppress(Exception):  # whatever it was, an error of the block's own says more
                    cluster.stop_looking()
            ray.shutdown()
            end_descendants(before)


def adopt_orphans() -> None:
    """Become the parent of what descendants leave behind when they end."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_descendants(spared: set[psutil.Process]) -> None:
    """End all descendants of this process but the ``spared`` ones, those that appear meanwhile included."""
    give_up_at = time.monotonic() + END_S
    while ours := [each for each in _descendants() if each not in spared]:
        for process in ours:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(ours, timeout=1.0)
        if time.monotonic() > give_up_at:
            raise TimeoutError(f"processes of the cluster have not ended: {[each.pid for each in ours]}")


def _descendants() -> Iterator[psutil.Process]:
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                yield process


def _look(address: str) -> Look:
    from ray.autoscaler.v2.sdk import get_cluster_status

    status = get_cluster_status(address)
    nodes = [each for each in (*status.active_nodes, *status.idle_nodes) if each.ray_node_type_name == NODE_TYPE]
    # A node that is being drained offers nothing any more, which looks as if all of it were in use.
    return Look(
        time.time(),
        {each.node_id: each.node_status != "DRAINING" and each.used_resources().get(RESOURCE, 0) > 0 for each in nodes},
    )


def _log_end(directory: Path) -> str:
    logs = sorted((directory / "ray" / "session_latest" / "logs").glob("monitor*"))
    return "\n".join(line for log in logs for line in log.read_text(errors="replace").splitlines()[-LOG_LINES:])


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
