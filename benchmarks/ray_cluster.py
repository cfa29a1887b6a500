"""A Ray of an arm's own on loopback; it and everything that it started is gone when the block ends."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

NUM_CPUS = 8  # logical: what fits is decided by the machine and not by Ray, in every arm
OBJECT_STORE_BYTES = 256 * 2**20
END_S = 10.0
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

    before = set(psutil.Process().children(recursive=True))
    try:
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
    finally:
        ray.shutdown()
        _, alive = psutil.wait_procs(set(psutil.Process().children(recursive=True)) - before, timeout=END_S)
        for process in alive:
            process.kill()
