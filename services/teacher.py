"""The teacher replica on a CPU: vLLM in process behind one micro-batched method of a Ray Serve deployment.

`services.deployment` starts and ends it; client actors call `generate` through a deployment handle, not HTTP. It needs
nothing of `ray.serve.llm`, whose import loads vLLM, so the process that deploys it is not held up by seconds.
"""

import time
from collections.abc import AsyncGenerator
from dataclasses import asdict
from typing import Any

from configs.terms.binding import Binding, check_binding
from services.engine import InProcessEngine
from services.generation import GenerateRequest, GenerateResult
from services.meter import Meter
from services.replies import yield_in_groups


class InProcessTeacher:
    """One replica. Errors are raised, never returned as rows; only the refusal of one prompt is a result."""

    def __init__(self, model: str, engine_kwargs: dict[str, Any], binding: Binding | None = None) -> None:
        started = time.monotonic()
        self._engine = InProcessEngine(model, engine_kwargs)
        if binding is not None:
            check_binding(binding)
        self._engine.start()
        self._meter = Meter(time.monotonic() - started)

    async def generate(self, batch: list[GenerateRequest]) -> AsyncGenerator[list[GenerateResult]]:
        """Complete a micro-batch; yields the results as rows are done. If the engine dies, so does this process."""
        with self._meter.call():
            async for results in yield_in_groups(self._engine.generate(request) for request in batch):
                self._meter.count(results)
                yield results

    async def describe(self) -> dict[str, Any]:
        """The engine configuration as vLLM resolved it: the fields of `EngineDescription`."""
        assert self._engine.description is not None
        return asdict(self._engine.description)

    async def tell_backlog(self, rows: int, seconds_left: float | None) -> float:
        """What the run still wants of all replicas together. Returns seconds since this one answered a row."""
        return self._meter.tell(rows, seconds_left)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Serve hands it to `services.scaling`."""
        return self._meter.report()

    def __del__(self) -> None:
        """Serve calls it when it ends a replica."""
        self._engine.shutdown()
