"""The pipeline of GENERATE on a real Ray: what is left of it when its reader goes."""

import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from configs.schema import GenerationConfig
from services import pipeline
from tests.integration.program import ROOT

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]


class StuckClient:
    """In place of `ShardClient`: has begun a shard, and never ends it."""

    def __init__(self, spec: Any) -> None:
        self._begun = Path(spec.begun)

    def __call__(self, block: Any) -> Any:
        self._begun.touch()
        time.sleep(3600)
        return block


@pytest.fixture
def connected(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_AUTH_MODE", "disabled")
        ray.init(
            num_cpus=1,
            include_dashboard=False,
            object_store_memory=100 << 20,
            # Ray's sockets live below it, and their paths may have 107 bytes only.
            _temp_dir=str(tmp_path_factory.mktemp("ray")),
            log_to_driver=False,
            runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
        )
        yield
        ray.shutdown()


def test_pipeline_whose_reader_goes_leaves_no_thread_that_would_ask_ray_later(
    tmp_path: Path, connected: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "ShardClient", StuckClient)
    begun = tmp_path / "begun"
    spec = SimpleNamespace(generation=GenerationConfig(), shards_at_once=1, node_labels={}, begun=str(begun))
    before = {*threading.enumerate()}
    with pipeline._Stream([partial(pipeline._run_clients, spec, [{"shard": 0}])]):
        give_up_at = time.monotonic() + 60
        while not begun.exists():
            assert time.monotonic() < give_up_at
            time.sleep(0.1)
    left = {thread.name for thread in {*threading.enumerate()} - before}
    assert not [each for each in left if each.startswith(("generate-stream", "iter_threaded", "StreamingExecutor"))]
