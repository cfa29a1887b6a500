"""Calls the teacher with deadlines, retries and cancellation; the only place that decides what an error means.

- The teacher is busy or scaling (`Fault.BUSY`): wait and try again, until the run's own no-progress deadline.
- A reply is late (`Fault.LATE`): try again; after ``max_attempts`` its rows fail with that reason. It is not the
  rows' fault while the teacher does not even answer a call without rows: then it counts as busy.
- The replica died (`Fault.LOST`): try again elsewhere. A call that died twice is tried once more with nothing else of
  this client in flight, so that bystanders are cleared; one that dies alone as well is cut in halves, until the prompt
  that the engine cannot survive stands by itself and becomes a failed row.
- Anything else is a fault of the run and travels up.
"""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from enum import StrEnum
from itertools import count
from typing import Any, Protocol

from services.generation import GenerateRequest, GenerateResult

FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 10.0
MOST_DOUBLINGS = 10  # already longer than the longest pause; a float ends at 1023
LOSSES_IN_COMPANY = 2  # after this many lost replicas a call is tried alone: one may be bad luck
LOSSES_ALONE = 2  # a single prompt that ends two replicas by itself is poison


class Fault(StrEnum):
    """What an error of a call says of the teacher."""

    BUSY = "busy"
    LATE = "late"
    LOST = "lost"


# By name: the real classes would import Ray and vLLM into every reader of this module, and Ray gives a replica's own
# exception a new class that has the original's name among its bases.
FAULTS = {
    "BackPressureError": Fault.BUSY,
    "DeploymentUnavailableError": Fault.BUSY,
    "TimeoutError": Fault.LATE,
    "ActorDiedError": Fault.LOST,
    "ActorUnavailableError": Fault.LOST,
    "EngineDead": Fault.LOST,
    "EngineDeadError": Fault.LOST,
    "NodeDiedError": Fault.LOST,
    "ObjectLostError": Fault.LOST,
    "OutOfMemoryError": Fault.LOST,  # Ray's memory monitor ended the replica
    "OwnerDiedError": Fault.LOST,
    "RayActorError": Fault.LOST,
    "ReplicaUnavailableError": Fault.LOST,
    "WorkerCrashedError": Fault.LOST,
}


class Teacher(Protocol):
    """What a deployment handle's method looks like: ``remote`` returns an awaitable that can be cancelled."""

    def remote(self, batch: list[GenerateRequest]) -> Any: ...


class Requester:
    """Keeps at most ``window_calls`` calls in flight, whichever shard they belong to. Lives on one event loop."""

    def __init__(self, teacher: Teacher, *, window_calls: int, deadline_s: float, max_attempts: int) -> None:
        self._teacher = teacher
        self._window_calls = window_calls
        self._window = asyncio.Semaphore(window_calls)
        self._alone = asyncio.Lock()
        self._deadline_s = deadline_s
        self._max_attempts = max_attempts
        self._calls = count()
        self._rng = random.Random()

    async def complete(self, requests: list[GenerateRequest]) -> list[GenerateResult]:
        """One result a request, in order; a request that cannot be completed has an ``error``."""
        late = lost = 0
        for attempt in count():
            try:
                return await self._call(requests, alone=False)
            except Exception as error:
                fault = classify(error)
                if fault is None:
                    raise
            late += fault is Fault.LATE and await self._is_answering()
            lost += fault is Fault.LOST
            if late >= self._max_attempts:
                return _fail(requests, f"deadline: no answer in {late} times {self._deadline_s:.0f} s")
            if lost >= LOSSES_IN_COMPANY:
                return await self._isolate(requests)
            await asyncio.sleep(self._pause(attempt))
        raise AssertionError("unreachable")

    async def _isolate(self, requests: list[GenerateRequest]) -> list[GenerateResult]:
        """Complete a call that may end replicas, alone; a call that does is cut in halves."""
        for attempt in range(LOSSES_ALONE if len(requests) == 1 else 1):
            try:
                return await self._call(requests, alone=True)
            except Exception as error:
                fault = classify(error)
                if fault is None:
                    raise
            if fault is not Fault.LOST:  # late or busy: as any other call, and back here when it dies again
                return await self.complete(requests)
            await asyncio.sleep(self._pause(attempt))
        if len(requests) == 1:
            return _fail(requests, f"poison: the replica died {LOSSES_ALONE} times while it answered this prompt alone")
        half = len(requests) // 2
        return await self._isolate(requests[:half]) + await self._isolate(requests[half:])

    async def _call(self, requests: list[GenerateRequest], *, alone: bool) -> list[GenerateResult]:
        async with self._whole_window() if alone else self._window:
            # The engine must not meet an id twice: an attempt that was given up may still be running there.
            number = next(self._calls)
            batch = [replace(each, request_id=f"{each.request_id}-{number}") for each in requests]
            return await self._ask(batch)

    async def _is_answering(self) -> bool:
        try:
            await self._ask([])
        except Exception as error:
            if classify(error) is None:
                raise
            return False
        return True

    async def _ask(self, batch: list[GenerateRequest]) -> list[GenerateResult]:
        response = self._teacher.remote(batch)
        try:
            async with asyncio.timeout(self._deadline_s):
                return list(await response)
        except (TimeoutError, asyncio.CancelledError):
            response.cancel()
            raise

    @asynccontextmanager
    async def _whole_window(self) -> AsyncIterator[None]:
        taken = 0
        async with self._alone:
            try:
                for _ in range(self._window_calls):
                    await self._window.acquire()
                    taken += 1
                yield
            finally:
                for _ in range(taken):
                    self._window.release()

    def _pause(self, attempt: int) -> float:
        doubled = FIRST_PAUSE_S * 2.0 ** min(attempt, MOST_DOUBLINGS)
        return min(LONGEST_PAUSE_S, doubled) * self._rng.uniform(0.5, 1.5)


def classify(error: BaseException) -> Fault | None:
    """What an error says of the teacher; None for a fault of the run, which no retry mends."""
    return next((FAULTS[base.__name__] for base in type(error).__mro__ if base.__name__ in FAULTS), None)


def _fail(requests: list[GenerateRequest], reason: str) -> list[GenerateResult]:
    return [GenerateResult(each.request_id, error=reason) for each in requests]
