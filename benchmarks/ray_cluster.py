"""A Ray of a benchmark's own on loopback; it and everything that it started is gone when the block ends."""

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.processes import ROOT

NUM_CPUS = 8  # logical: what fits is decided by the machine and not by Ray, in every arm
OBJECT_STORE_BYTES = 256 * 2**20
END_S = 20.0
ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "GRPC_VERBOSITY": "ERROR",
    "RAY_worker_niceness": "0",  # as the processes of other arms; Ray's default is 15
}


@contextmanager
def ray_cluster(directory: Path) -> Iterator[None]:
    """Its files are in ``directory``, whose path must be short: Unix sockets lie below it.

    Ray reads the environment when it is imported, so that comes first.
    """
    os.environ.update(ENVIRONMENT)
    import ray

    with _ended():
        ray.init(
            num_cpus=NUM_CPUS,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            log_to_driver=True,
            logging_level=logging.WARNING,
            _temp_dir=str(directory / "ray"),
            _node_ip_address="127.0.0.1",
        )
        yield


@dataclass(frozen=True, slots=True)
class Home:
    """Where a benchmark's Ray lives; ``ends`` is closed once Ray is shut down, and may fail."""

    directory: Path
    ends: ExitStack


@contextmanager
def ray_home(name: str, environment: Mapping[str, str] | None = None) -> Iterator[Home]:
    """A directory whose name begins with ``name``, and the environment; Ray, which reads it, is imported afterwards."""
    directory = Path(tempfile.mkdtemp(prefix=f"{name}-", dir="/tmp"))  # Unix sockets lie below it: a short path
    os.environ.update(
        {
            "RAY_AUTH_MODE": "disabled",
            "RAY_TMPDIR": str(directory),
            "RAY_USAGE_STATS_ENABLED": "0",
            "GRPC_VERBOSITY": "ERROR",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])),
            **(environment or {}),
        }
    )
    try:
        with _ended() as ends:
            yield Home(directory, ends)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def _ended() -> Iterator[ExitStack]:
    """Whatever was started within is ended."""
    import ray

    before, ends = set(psutil.Process().children(recursive=True)), ExitStack()
    try:
        yield ends
    finally:
        # Looked up first: what outlives its raylet is no child of this process any more.
        ours = set(psutil.Process().children(recursive=True)) - before
        ray.shutdown()
        with suppress(Exception):  # nodes may have ended by themselves
            ends.close()
        _, alive = psutil.wait_procs(ours, timeout=END_S)
        for process in alive:
            with suppress(psutil.NoSuchProcess):
                process.kill()
