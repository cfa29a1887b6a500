"""The Ray cluster a run uses: an embedded one that lives as long as the command, or a running one to join.

The embedded cluster binds to loopback, has a temporary directory and token of its own, and leaves nothing behind.
"""

import json
import logging
import os
import secrets
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from cluster.growth import read_is_fixed, read_limits
from cluster.run_dir import PROJECT_ROOT, RunDir
from cluster.signals import interrupt_on_sigterm
from configs.errors import DeadlineExceeded, UserError
from configs.schema import ClusterConfig, DeadlinesConfig, Device

LOOPBACK = "127.0.0.1"
TEMP_PREFIX = "stillhouse-ray-"  # short, as Ray keeps Unix sockets below it and their paths end at 107 characters
START_TRIES = 2
SESSION_VARIABLE = "STILLHOUSE_SESSION"
# What the cluster needs of the project; a job's package stays far below Ray's limit without the rest.
WORKING_DIR_EXCLUDES = [".git", ".venv", "runs", "tests", "docs", "benchmarks", "**/__pycache__", ".*cache"]


@dataclass(frozen=True, slots=True)
class Session:
    """A connection to a cluster. ``embedded`` clusters are the command's own, to the last core."""

    embedded: bool

    def resources(self) -> dict[str, float]:
        """All that the cluster has now."""
        import ray

        return dict(ray.cluster_resources())

    def is_fixed(self) -> bool:
        """Whether the cluster surely can't grow: it is embedded, or has no autoscaler; False where nobody can tell."""
        return self.embedded or read_is_fixed()

    def limits(self) -> dict[str, float] | None:
        """The most of each resource that the cluster may come to; None where nobody can tell."""
        resources = self.resources()
        return resources if self.is_fixed() else read_limits(resources)

    def nodes(self, labels: dict[str, str] | None = None) -> list[dict[str, float]]:
        """The resources of each node that is up and has the ``labels``; a value ``!x`` is any other, or none."""
        import ray

        nodes = [node for node in ray.nodes() if node["Alive"]]
        return [node["Resources"] for node in nodes if has_labels(node["Labels"] or {}, labels or {})]

    def device(self, wanted: Device, accelerator_type: str | None = None) -> Device:
        """What ``auto`` stands for on this cluster."""
        if wanted is not Device.AUTO:
            return wanted
        # A cluster that scales from nothing has no GPU yet; a recipe that names its type asks for one all the same.
        return Device.GPU if accelerator_type or self.resources().get("GPU", 0) > 0 else Device.CPU


def has_labels(node: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """Whether a node with such labels fulfils a selector of Ray's, of ``x`` and ``!x`` alone.

    >>> has_labels({"pool": "student"}, {"pool": "!student"}), has_labels({}, {"pool": "!student"})
    (False, True)
    """
    return all(
        node.get(key) != value.removeprefix("!") if value.startswith("!") else node.get(key) == value
        for key, value in wanted.items()
    )


def cluster_address(config: ClusterConfig) -> str | None:
    """Of the running cluster that a run joins; None where it starts its own."""
    return config.address or os.environ.get("RAY_ADDRESS")


@contextmanager
def ray_session(config: ClusterConfig, deadlines: DeadlinesConfig, run_dir: RunDir) -> Iterator[Session]:
    """Start or join a cluster; always leaves it, and ends an embedded one with all its processes."""
    # Threads of Ray Data and Ray Serve outlive it for a moment, and what they ask would start a cluster of Ray's own.
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"  # read when Ray is imported
    address = cluster_address(config)
    with _stderr_apart(run_dir), _joined(address) if address else _embedded(config, deadlines, run_dir) as session:
        yield session


@contextmanager
def _stderr_apart(run_dir: RunDir) -> Iterator[None]:
    """Keep what Ray's C++ parts write to descriptor 2 out of the display, in ``logs/ray-driver.log`` of a local run."""
    logs = Path(str(run_dir.root)) / "logs"
    if not isinstance(run_dir.root, Path):
        yield
        return
    logs.mkdir(parents=True, exist_ok=True)
    python_stderr, terminal = sys.stderr, os.dup(2)
    sys.stderr.flush()
    with open(logs / "ray-driver.log", "a") as log, os.fdopen(terminal, "w", buffering=1) as stream:
        os.dup2(log.fileno(), 2)
        sys.stderr = stream
        try:
            yield
        finally:
            stream.flush()
            os.dup2(stream.fileno(), 2)
            sys.stderr = python_stderr


def auth_mode() -> str:
    """How to speak to a running cluster when the user has not said: with a token where there is one."""
    return "token" if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH") else "disabled"


@contextmanager
def _joined(address: str) -> Iterator[Session]:
    import ray

    if address.startswith("ray://"):
        raise UserError(
            f"cluster.address={address}: a run is a driver of its own, which Ray Client has none of; submit it "
            "(`stillhouse submit RECIPE --address http://HEAD:8265`), or run it on a node with cluster.address=auto"
        )
    os.environ.setdefault("RAY_AUTH_MODE", auth_mode())
    inside_job = "RAY_JOB_ID" in os.environ or bool(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR"))
    # A submitted job brings its working_dir along; a driver that joins by itself has to send the code.
    runtime_env = None if inside_job else {"working_dir": str(PROJECT_ROOT), "excludes": WORKING_DIR_EXCLUDES}
    try:
        ray.init(address, runtime_env=runtime_env, logging_level=logging.WARNING, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(f"cluster.address: no Ray cluster answers at {address} ({error})") from None
    interrupt_on_sigterm()  # which is how a job is stopped; Ray has put a handler that exits at once
    try:
        yield Session(embedded=False)
    finally:
        ray.shutdown()


@contextmanager
def _embedded(config: ClusterConfig, deadlines: DeadlinesConfig, run_dir: RunDir) -> Iterator[Session]:
    _remove_leftovers()
    temp_dir = Path(tempfile.mkdtemp(prefix=TEMP_PREFIX, dir=_short_temp_root()))
    (temp_dir / "owner.json").write_text(json.dumps({"pid": os.getpid(), "started": _started_at(os.getpid())}))
    environment = {**_environment(), SESSION_VARIABLE: str(temp_dir)}
    saved = {key: os.environ.get(key) for key in environment}
    os.environ.update(environment)
    import ray  # after the environment: Ray reads some of it at import

    before = _children()
    try:
        _start_node(config, temp_dir)
        interrupt_on_sigterm()  # Ray has put its own handler, which prints a stack and exits at once
        yield Session(embedded=True)
    except BaseException:
        _keep_logs(temp_dir, run_dir)
        raise
    finally:
        started = _children() - before  # what outlives its parent, the raylet, is no child of ours then
        # Ray waits for its raylet without a deadline; once that is gone it goes on.
        give_up = threading.Timer(deadlines.shutdown, _kill, [started])
        give_up.start()
        ray.shutdown()
        give_up.cancel()
        _end_processes(started | _processes_of(temp_dir), deadlines.shutdown)
        shutil.rmtree(temp_dir, ignore_errors=True)
        for key, value in saved.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def _start_node(config: ClusterConfig, temp_dir: Path) -> None:
    """Start the embedded cluster; Ray gives its own processes 30 s, which a machine under load may take."""
    import ray

    for attempt in range(START_TRIES):
        try:
            ray.init(
                num_cpus=config.num_cpus,
                include_dashboard=False,
                object_store_memory=config.object_store_mib * 2**20,
                logging_level=logging.WARNING,
                log_to_driver=False,
                configure_logging=False,
                _temp_dir=str(temp_dir),
                _node_ip_address=LOOPBACK,
            )
            return
        except Exception as error:  # Ray raises no type of its own here
            ray.shutdown()
            if "timed out during startup" not in str(error):
                raise
            if attempt == START_TRIES - 1:
                raise DeadlineExceeded(
                    f"Ray's own processes did not start in {START_TRIES} times 30 s; the machine is busy with other "
                    "work: end some of it, and run the same command again"
                ) from error


def _environment() -> dict[str, str]:
    paths = [str(PROJECT_ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),  # inherited by every worker of the cluster
        "RAY_AUTH_MODE": "token",  # other users of this machine can reach loopback as well
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS": "0",
        "GRPC_VERBOSITY": "ERROR",  # it tells of every fork otherwise
        "VLLM_LOGGING_LEVEL": "ERROR",
        "RAY_process_group_cleanup_enabled": "1",  # a killed replica takes its engine's processes along
        "TOKENIZERS_PARALLELISM": "false",
    }


def _short_temp_root() -> str:
    root = tempfile.gettempdir()
    return root if len(root) < 40 else "/tmp"


def _started_at(pid: int) -> float:
    return psutil.Process(pid).create_time()


def _remove_leftovers() -> None:
    """Remove temporary directories of commands that were killed; a directory names its owner."""
    for directory in Path(_short_temp_root()).glob(f"{TEMP_PREFIX}*"):
        with suppress(OSError, ValueError, KeyError):
            owner = json.loads((directory / "owner.json").read_text())
            if psutil.pid_exists(owner["pid"]) and _started_at(owner["pid"]) == owner["started"]:
                continue
            _kill(_processes_of(directory))
            shutil.rmtree(directory, ignore_errors=True)


def _children() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def _processes_of(temp_dir: Path) -> set[psutil.Process]:
    """What carries a session in its environment, and Ray's agents, whose titles overwrite theirs, by their logs."""
    found = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            is_agent = process.name().startswith("ray::") and any(
                Path(file.path).is_relative_to(temp_dir) for file in process.open_files()
            )
            is_ours = is_agent or process.environ().get(SESSION_VARIABLE) == str(temp_dir)
            if is_ours and process.pid != os.getpid():
                found.add(process)
    return found


def _end_processes(started: set[psutil.Process], deadline_s: float) -> None:
    """Wait for what the session started to end, then end what has not."""
    _, alive = psutil.wait_procs(started, timeout=min(5.0, deadline_s))
    _kill(alive)
    _, alive = psutil.wait_procs(alive, timeout=deadline_s)
    if alive:
        names = ", ".join(f"{process.pid}" for process in alive)
        raise DeadlineExceeded(f"processes {names} did not end in {deadline_s:.0f} s (deadlines.shutdown)")


def _kill(processes: Iterable[psutil.Process]) -> None:
    """Kill them with all that they have started; a raylet starts its agents again for as long as it can."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.suspend()
            children = process.children(recursive=True)
            process.kill()
            _kill(children)


def _keep_logs(temp_dir: Path, run_dir: RunDir) -> None:
    """Copy Ray's logs into a local run directory: they say why, and the temporary directory goes away."""
    if not isinstance(run_dir.root, Path):
        return
    target = Path(str(run_dir.root)) / "logs" / time.strftime("ray-%Y%m%d-%H%M%S")
    with suppress(OSError):
        shutil.copytree(temp_dir / "session_latest" / "logs", target, dirs_exist_ok=True)
