"""A Ray cluster of several raylets that can be hurt, and drivers on it; counts what was killed and what it cost.

All processes are descendants of the test's own, and only those are ever killed.
"""

import json
import multiprocessing
import os
import random
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from unittest.mock import patch

import fsspec
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable

import benchmarks.echo
from benchmarks.echo import EchoScript, answer
from services.acceptance import PlannedPrompt
from services.client import to_request
from services.prompts import make_prompt
from services.table import shard_files
from tests.chaos.clients import CLIENT_FILE, load_renderer
from tests.chaos.driver import DriverJob, client_spec, main
from tests.chaos.teacher import ENGINE, EngineTeacher

ROOT = Path(__file__).resolve().parents[2]
NODE_CPUS = 2
WORKER_NODES = 2
OBJECT_STORE_BYTES = 80 * 2**20
END_S = 30.0
POLL_S = 0.05
CALL_S = 90.0  # for a teacher to be deployed
PROCESSES = multiprocessing.get_context("forkserver")
# Starting a process looks after all others; two threads that do so for one of them would lose its exit status.
_BOOKS = threading.Lock()
# Imported by the process that drivers are forked from: they are processes like any other, which start at once.
PRELOADED = ["tests.chaos.harness", "tests.chaos.driver", "tests.chaos.clients", "services.pipeline", "ray.serve"]
SYSTEM_CONFIG = {
    # Ray's defaults take 15 s to notice that a raylet is gone; a schedule has to be over by then.
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 4,
    # Workers that wait for work with everything imported; most of a short run is such imports otherwise.
    "enable_worker_prestart": True,
    "preload_python_modules": ["services.pipeline", "ray.serve", "tests.chaos.clients", "tests.chaos.teacher"],
}


def environment(temp: Path) -> dict[str, str]:
    """What every process of the cluster and every driver sees."""
    return {
        "RAY_AUTH_MODE": "disabled",
        "RAY_TMPDIR": str(temp),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS": "0",
        "GRPC_VERBOSITY": "ERROR",
        "RAY_memory_monitor_refresh_ms": "0",
        "RAY_gcs_rpc_server_reconnect_timeout_s": "10",  # a driver waits a minute for a head that is gone otherwise
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])),
    }


class Chaos:
    """A head and two worker nodes with the echo teacher; use `chaos_cluster`, which also ends it."""

    def __init__(self, temp: Path) -> None:
        from ray.cluster_utils import Cluster

        self.temp = temp
        self._drivers: list[Driver] = []
        self._nodes = threading.Lock()
        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": NODE_CPUS,
                "object_store_memory": OBJECT_STORE_BYTES,
                "include_dashboard": False,
                "temp_dir": str(temp / "ray"),
                "_system_config": SYSTEM_CONFIG,
            },
        )
        self.restore_nodes()

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def deploy(
        self,
        name: str,
        script: EchoScript,
        num_replicas: int = 2,
        scaling: dict[str, Any] | None = None,
        teacher: type[EngineTeacher] = EngineTeacher,
    ) -> None:
        """Put the echo teacher on the cluster, or replace it; ``scaling`` is as in `benchmarks.echo.deploy`."""
        self._run(_deploy, name, script, num_replicas, scaling, teacher)

    def delete(self, name: str) -> None:
        """Take the teacher away."""
        self._run(_delete, name)

    def start(self, job: DriverJob) -> "Driver":
        """Start the run's command."""
        driver = Driver(job, self.temp)
        self._drivers.append(driver)
        return driver

    def complete(self, job: DriverJob, timeout_s: float = 100) -> list[dict[str, Any]]:
        """Run the command to its end; the events, the last of which is ``sealed``."""
        driver = self.start(job)
        driver.wait(timeout_s)
        assert [each["event"] for each in driver.events()[-1:]] == ["sealed"], driver.describe()
        return driver.events()

    def count_replicas(self, app_name: str) -> int:
        """Processes of a teacher's replicas that are there just now."""
        return len(_replicas(app_name))

    def kill_replica(self, app_name: str, rng: random.Random) -> bool:
        """SIGKILL a replica of a teacher; False when there is none just now."""
        return _kill(_replicas(app_name), rng)

    def kill_engine(self, app_name: str, rng: random.Random) -> bool:
        """SIGKILL the engine's process of a replica; False when there is none just now."""
        return _kill(
            [each for replica in _replicas(app_name) for each in _children(replica) if _name(each) == ENGINE], rng
        )

    def kill_client(self, fault_dir: str, rng: random.Random) -> bool:
        """SIGKILL a client actor of a run; False when there is none just now."""
        pids = {int(file.suffix[1:]) for file in Path(fault_dir).glob(f"{CLIENT_FILE}.*")}
        return _kill([each for each in _descendants() if each.pid in pids], rng)

    def kill_node(self, rng: random.Random) -> bool:
        """Take a worker node away without a word, with all its processes; False when there is none just now."""
        with self._nodes:
            nodes = sorted(self.cluster.worker_nodes, key=lambda each: each.unique_id)
            if nodes:
                self.cluster.remove_node(rng.choice(nodes), allow_graceful=False)
            return bool(nodes)

    def restore_nodes(self) -> None:
        """Add worker nodes for those that were killed; Ray can do so on the main thread alone."""
        with self._nodes:
            while len(self.cluster.worker_nodes) < WORKER_NODES:
                self.cluster.add_node(num_cpus=NODE_CPUS, object_store_memory=OBJECT_STORE_BYTES)

    def kill_cluster(self) -> None:
        """SIGKILL every raylet and the head's services; workers end with their raylet."""
        for node in self.cluster.list_all_nodes():
            node.kill_all_processes(check_alive=False, allow_graceful=False)

    def close(self) -> None:
        """End drivers and cluster."""
        for driver in self._drivers:
            driver.kill()
        with suppress(Exception):  # of a cluster that may be half dead by intent
            self.cluster.shutdown()

    def _run(self, call: Callable[..., None], *arguments: Any) -> None:
        # In a process of its own: one process can only ever be connected to one cluster.
        process = PROCESSES.Process(target=_connect_and, args=(self.address, call, *arguments), daemon=True)
        process.start()
        process.join(CALL_S)
        assert process.exitcode == 0, f"{call.__name__} ended with {process.exitcode}"


class Driver:
    """A driver process and what it has said so far."""

    def __init__(self, job: DriverJob, temp: Path) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="driver-", dir=temp))
        for name in ("events", "errors"):
            (self.directory / name).touch()
        files = str(self.directory / "events"), str(self.directory / "errors")
        self.process = PROCESSES.Process(target=main, args=(job, *files), daemon=True)
        with _BOOKS:
            self.process.start()

    @property
    def status(self) -> int | None:
        """Its exit status; None while it runs, and the signal's number below zero when one ended it."""
        with _BOOKS:
            return self.process.exitcode

    def events(self) -> list[dict[str, Any]]:
        """What it has printed; a line that is being written, and what Ray has to say, are left out."""
        lines = (self.directory / "events").read_text().split("\n")[:-1]
        return [json.loads(line) for line in lines if line.startswith("{")]

    def wait(self, timeout_s: float) -> int:
        """Its exit status; a driver that takes longer is killed and fails the test."""
        give_up_at = time.monotonic() + timeout_s
        while (status := self.status) is None:
            if time.monotonic() > give_up_at:
                self.kill()
                raise AssertionError(f"the driver has not ended in {timeout_s:.0f} s: {self.describe()}")
            time.sleep(POLL_S)
        return status

    def wait_for(self, moment: Callable[[list[dict[str, Any]]], bool], timeout_s: float = 60) -> None:
        """Until its events fulfil a condition, or it has ended."""
        give_up_at = time.monotonic() + timeout_s
        while self.status is None and not moment(self.events()):
            assert time.monotonic() < give_up_at, self.describe()
            time.sleep(POLL_S)

    def kill(self) -> None:
        """SIGKILL, as by the kernel."""
        self.process.kill()
        give_up_at = time.monotonic() + END_S
        while self.status is None and time.monotonic() < give_up_at:
            time.sleep(POLL_S)

    def describe(self) -> str:
        """Its events and the end of its error stream, for a failing test."""
        return f"{self.events()[-5:]}\n{(self.directory / 'errors').read_text()[-3000:]}"


@contextmanager
def chaos_cluster() -> Iterator[Chaos]:
    """A cluster with a directory of its own; both are gone afterwards, whatever happens."""
    temp = Path(tempfile.mkdtemp(prefix="chaos-", dir="/tmp"))  # Unix sockets lie below it: a short path
    saved = {key: os.environ.get(key) for key in environment(temp)}
    os.environ.update(environment(temp))
    PROCESSES.set_forkserver_preload(PRELOADED)
    forkserver.ensure_running()  # for good: it ends with this process
    before = set(_descendants())
    chaos = None
    try:
        chaos = Chaos(temp)
        yield chaos
    finally:
        if chaos is not None:
            chaos.close()
        for process in set(_descendants()) - before:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(set(_descendants()) - before, timeout=END_S)
        shutil.rmtree(temp, ignore_errors=True)
        for key, value in saved.items():
            os.environ.pop(key, None) if value is None else os.environ.update({key: value})


def watch(look: Callable[[], int], is_over: Callable[[], bool], timeout_s: float = 100) -> list[int]:
    """What is seen from now until something is over, each change once."""
    give_up_at = time.monotonic() + timeout_s
    seen = [look()]
    while True:
        over = is_over()  # before the look, so that what ended it is seen as well
        if (now := look()) != seen[-1]:
            seen.append(now)
        if over:
            return seen
        assert time.monotonic() < give_up_at, f"not over after {timeout_s:.0f} s: {seen}"
        time.sleep(POLL_S)


def read_completions(job: DriverJob) -> list[dict[str, Any]]:
    """Every row of the table, in order of prompt id and sample."""
    files = shard_files(DeltaTable(job.completions_uri))
    rows = [row for file in files for row in _read(job.completions_uri, file.path).to_pylist()]
    return sorted(rows, key=lambda row: (row["prompt_id"], row["sample_index"]))


def expected_answers(job: DriverJob) -> dict[tuple[str, int], list[int]]:
    """What an undisturbed run answers, worked out without any cluster."""
    sampling, renderer = client_spec(job).tables["completions"].sampling, load_renderer()
    answers = {}
    for text in job.prompts:
        prompt = make_prompt(text)
        [token_ids] = renderer.render([text])
        assert not isinstance(token_ids, ValueError)
        planned = PlannedPrompt(prompt.prompt_id, 0, prompt.prompt, None, token_ids)
        for index, sample in enumerate(answer(to_request(planned, sampling)).samples):
            answers[prompt.prompt_id, index] = sample.token_ids
    return answers


def assert_exactly_once(job: DriverJob) -> None:
    """Each planned row is there once, with the answer of an undisturbed run."""
    rows, answers = read_completions(job), expected_answers(job)
    found = Counter((row["prompt_id"], row["sample_index"]) for row in rows)
    lost, doubled = answers.keys() - found.keys(), [row for row, times in found.items() if times > 1]
    assert (sorted(lost), doubled, sorted(found.keys() - answers.keys())) == ([], [], [])
    for row in rows:
        key = row["prompt_id"], row["sample_index"]
        assert row["completion_token_ids"] == answers[key], f"{key}: {row['status']} {row['reason']}"


def _read(uri: str, path: str) -> pa.Table:
    with fsspec.open(f"{uri}/{path}", "rb") as file:
        return pq.read_table(file)


def _connect_and(address: str, call: Callable[..., None], *arguments: Any) -> None:
    import ray

    ray.init(address, log_to_driver=False, logging_level="ERROR", namespace="serve")
    call(*arguments)


def _deploy(
    name: str, script: EchoScript, num_replicas: int, scaling: dict[str, Any] | None, teacher: type[EngineTeacher]
) -> None:
    with patch.object(benchmarks.echo, "EchoTeacher", teacher):
        benchmarks.echo.deploy(name, script, num_replicas=num_replicas, scaling=scaling)


def _delete(name: str) -> None:
    from ray import serve

    serve.delete(name)


def _kill(processes: list[psutil.Process], rng: random.Random) -> bool:
    if not processes:
        return False
    with suppress(psutil.NoSuchProcess):
        rng.choice(sorted(processes, key=lambda each: each.pid)).kill()
    return True


def _replicas(app_name: str) -> list[psutil.Process]:
    # Ray writes what a worker is into its process title.
    return [each for each in _descendants() if f"ServeReplica:{app_name}:" in _title(each)]


def _descendants() -> list[psutil.Process]:
    return _children(psutil.Process())


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.Error:
        return ""
