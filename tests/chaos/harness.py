"""A Ray cluster of several raylets that can be hurt, and drivers on it; counts what was killed and what it cost.

All processes are descendants of the test's own, and only those are ever killed.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fsspec
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable

from benchmarks.echo import EchoScript, answer, deploy
from services.acceptance import PlannedPrompt
from services.client import to_request
from services.prompts import make_prompt
from services.table import shard_files
from tests.chaos.clients import load_renderer
from tests.chaos.driver import DriverJob, client_spec

ROOT = Path(__file__).resolve().parents[2]
NODE_CPUS = 2
OBJECT_STORE_BYTES = 80 * 2**20
END_S = 30.0
# Ray's defaults take 15 s to notice that a raylet is gone; a schedule has to be over by then.
QUICK_DEATHS = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 4,
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
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])),
    }


class Chaos:
    """A head and two worker nodes with the echo teacher; use `chaos_cluster`, which also ends it."""

    def __init__(self, temp: Path) -> None:
        import ray
        from ray.cluster_utils import Cluster

        self.temp = temp
        self.kills: Counter[str] = Counter()
        self._drivers: list[Driver] = []
        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": NODE_CPUS,
                "object_store_memory": OBJECT_STORE_BYTES,
                "include_dashboard": False,
                "temp_dir": str(temp / "ray"),
                "_system_config": QUICK_DEATHS,
            },
        )
        ray.init(self.cluster.address, log_to_driver=False, logging_level="ERROR", namespace="serve")
        for _ in range(2):
            self.add_node()

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def add_node(self) -> None:
        """One more worker node."""
        self.cluster.add_node(num_cpus=NODE_CPUS, object_store_memory=OBJECT_STORE_BYTES)

    def deploy(self, name: str, script: EchoScript, num_replicas: int = 2) -> None:
        """Put the echo teacher on the cluster."""
        deploy(name, script, num_replicas=num_replicas, num_cpus=1)

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

    def kill_replica(self, rng: random.Random) -> bool:
        """SIGKILL a teacher replica; False when there is none just now."""
        return self._kill("replica", rng, "ServeReplica:")

    def kill_client(self, rng: random.Random) -> bool:
        """SIGKILL a client actor; False when there is none just now."""
        return self._kill("client", rng, "MapWorker")

    def kill_node(self, rng: random.Random) -> bool:
        """Take a worker node away without a word, with all its processes, and add a new one."""
        node = rng.choice(sorted(self.cluster.worker_nodes, key=lambda each: each.unique_id))
        self.cluster.remove_node(node, allow_graceful=False)
        self.kills["node"] += 1
        self.add_node()
        return True

    def close(self) -> None:
        """End drivers and cluster."""
        import ray
        from ray import serve

        for driver in self._drivers:
            driver.kill()
        with suppress(Exception):  # of a cluster that may be half dead by intent
            serve.shutdown()
        ray.shutdown()
        self.cluster.shutdown()

    def _kill(self, what: str, rng: random.Random, title: str) -> bool:
        # Ray writes what a worker is into its process title.
        found = [each for each in _descendants() if title in _title(each)]
        if not found:
            return False
        with suppress(psutil.NoSuchProcess):
            rng.choice(sorted(found, key=lambda each: each.pid)).kill()
            self.kills[what] += 1
        return True


class Driver:
    """A driver process and what it has said so far."""

    def __init__(self, job: DriverJob, temp: Path) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="driver-", dir=temp))
        (self.directory / "job.json").write_text(job.to_json())
        with open(self.directory / "events", "wb") as out, open(self.directory / "errors", "wb") as err:
            command = [sys.executable, "-m", "tests.chaos.driver", str(self.directory / "job.json")]
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=err)

    def events(self) -> list[dict[str, Any]]:
        """What it has printed; a line that is being written, and what Ray has to say, are left out."""
        lines = (self.directory / "events").read_text().split("\n")[:-1]
        return [json.loads(line) for line in lines if line.startswith("{")]

    def wait(self, timeout_s: float) -> int:
        """Its exit status; a driver that takes longer is killed and fails the test."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the driver has not ended in {timeout_s:.0f} s: {self.describe()}") from None

    def wait_for(self, moment: Callable[[list[dict[str, Any]]], bool], timeout_s: float = 60) -> None:
        """Until its events fulfil a condition, or it has ended."""
        give_up_at = time.monotonic() + timeout_s
        while self.process.poll() is None and not moment(self.events()):
            assert time.monotonic() < give_up_at, self.describe()
            time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL, as by the kernel."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(END_S)

    def describe(self) -> str:
        """Its events and the end of its error stream, for a failing test."""
        return f"{self.events()[-5:]}\n{(self.directory / 'errors').read_text()[-3000:]}"


@contextmanager
def chaos_cluster() -> Iterator[Chaos]:
    """A cluster with a directory of its own; both are gone afterwards, whatever happens."""
    temp = Path(tempfile.mkdtemp(prefix="chaos-", dir="/tmp"))  # Unix sockets lie below it: a short path
    saved = {key: os.environ.get(key) for key in environment(temp)}
    os.environ.update(environment(temp))
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
        planned = PlannedPrompt(prompt.prompt_id, 0, prompt.prompt, None, renderer.render(text))
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


def _descendants() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
