"""Calls the teacher with deadlines, retries and cancellation; the only place that decides what an error means.

Transient errors (a replica or node gone, back-pressure, a late reply) are tried again elsewhere after a jittered pause.
A call that keeps failing is cut in halves until the one prompt that the engine cannot survive stands alone: it becomes
a failed row. Anything else is a fault of the run and travels up.
"""

import asyncio
import random
from dataclasses import replace
from itertools import count
from typing import Any, Protocol

from services.generation import GenerateRequest, GenerateResult

FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 10.0

# By name, as the real classes would import Ray's and vLLM's packages into every reader of this module; a RayTaskError
# carries the name of its cause as its own base class.
TRANSIENT = frozenset(
    {
        "ActorDiedError",
        "ActorUnavailableError",
        "BackPressureError",
        "DeploymentUnavailableError",
        "EngineDead",
        "EngineDeadError",
        "NodeDiedError",
        "ObjectLostError",
        "OwnerDiedError",
        "RayActorError",
        "ReplicaUnavailableError",
        "TimeoutError",
        "WorkerCrashedError",
    }
)


class Teacher(Protocol):
    """What a deployment handle's method looks like: ``remote`` returns an awaitable that can be cancelled."""

    def remote(self, batch: list[GenerateRequest]) -> Any: ...


class Requester:
    """Keeps at most ``window_calls`` calls in flight, whichever shard they belong to. Lives on one event loop."""

    def __init__(self, teacher: Teacher, *, window_calls: int, deadline_s: float, max_attempts: int) -> None:
        self._teacher = teacher
        self._window = asyncio.Semaphore(window_calls)
        self._deadline_s = deadline_s
        self._max_attempts = max_attempts
        self._calls = count()
        self._rng = random.Random()

    async def complete(self, requests: list[GenerateRequest]) -> list[GenerateResult]:
        """One result a request, in order; a request that no replica survives has an ``error``."""
        last: BaseException | None = None
        for attempt in range(self._max_attempts):
            try:
                return await self._call(requests)
            except Exception as error:
                if not is_transient(error):
                    raise
                last = error
            await asyncio.sleep(self._pause(attempt))
        if len(requests) == 1:
            reason = f"poison: {self._max_attempts} attempts ended with {type(last).__name__}"
            return [GenerateResult(requests[0].request_id, error=reason)]
        half = len(requests) // 2
        return await self.complete(requests[:half]) + await self.complete(requests[half:])

    async def _call(self, requests: list[GenerateRequest]) -> list[GenerateResult]:
        async with self._window:
            # The engine must not meet an id twice: an attempt that was given up may still be running there.
            number = next(self._calls)
            batch = [replace(each, request_id=f"{each.request_id}-{number}") for each in requests]
            response = self._teacher.remote(batch)
            try:
                async with asyncio.timeout(self._deadline_s):
                    return list(await response)
            except (TimeoutError, asyncio.CancelledError):
                response.cancel()
                raise

    def _pause(self, attempt: int) -> float:
        return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**attempt) * self._rng.uniform(0.5, 1.5)


def is_transient(error: BaseException) -> bool:
    """Whether another try, elsewhere or later, may succeed."""
    return any(base.__name__ in TRANSIENT for base in type(error).__mro__)
