"""Calls the teacher with deadlines, retries and cancellation; the only place that decides what an error means.

- The teacher is busy or scaling (`Fault.BUSY`): wait and try again, until the run's own no-progress deadline.
- A reply is late (`Fault.LATE`): try again; after ``max_attempts`` its rows fail with that reason. Who waits for others
  is not late: the deadline runs while the teacher sends nothing at all, and from when a row's turn has come. It is not
  the rows' fault while the teacher does not even answer a call without rows: then it counts as busy.
- The replica died (`Fault.LOST`): try again elsewhere. A call that died twice is tried once more with nothing else of
  this client in flight, so that bystanders are cleared; one that dies alone as well is cut in halves, until the prompt
  that the engine cannot survive stands by itself and becomes a failed row. A death counts only where the teacher has
  answered since the one before: what is lost with a teacher that is not there says nothing of a prompt.
- Anything else is a fault of the run and travels up.
"""

import asyncio
import math
import random
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from enum import StrEnum
from itertools import count
from statistics import median
from typing import Any, Protocol

from services.generation import GenerateRequest, GenerateResult
from services.window import Window

FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 10.0
MOST_DOUBLINGS = 10  # already longer than the longest pause; a float ends at 1023
LOSSES_IN_COMPANY = 2  # after this many lost replicas a call is tried alone: one may be bad luck
LOSSES_ALONE = 2  # a single prompt that ends two replicas by itself is poison

HEDGE_AFTER = 3.0  # times as long as half of the latest calls took
HEDGE_KNOWN_CALLS = 8  # before, what is long is not known
HEDGE_LOOK_S = 0.5

DEADLINE_LOOKS = 12  # in a deadline; a call is late by no more than one of them

Keep = Callable[[GenerateResult, GenerateRequest], None]


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
    "EngineDeadError": Fault.BUSY,  # it was dead before; a replica whose engine dies of a call dies itself
    "TimeoutError": Fault.LATE,
    "ActorDiedError": Fault.LOST,
    "ActorUnavailableError": Fault.LOST,
    "NodeDiedError": Fault.LOST,
    "ObjectLostError": Fault.LOST,
    "OutOfMemoryError": Fault.LOST,  # Ray's memory monitor ended the replica
    "OwnerDiedError": Fault.LOST,
    "RayActorError": Fault.LOST,
    "ReplicaUnavailableError": Fault.LOST,
    "WorkerCrashedError": Fault.LOST,
}


class Teacher(Protocol):
    """What a deployment handle's streaming method looks like.

    ``remote`` returns an asynchronous iterator over lists of results that can be cancelled.
    """

    def remote(self, batch: list[GenerateRequest]) -> Any: ...


class Results:
    """What has come back so far of requests that were handed in together, in however many calls.

    ``place`` is where their calls stand in the window, and ``on_result`` hears of each result at once.
    """

    def __init__(self, place: int, on_result: Callable[[GenerateResult], None]) -> None:
        self.place = place
        self._on_result = on_result
        self._by_id: dict[str, GenerateResult] = {}

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._by_id

    def __getitem__(self, request_id: str) -> GenerateResult:
        return self._by_id[request_id]

    def add(self, result: GenerateResult) -> None:
        self._by_id[result.request_id] = result
        self._on_result(result)


class Requester:
    """Keeps at most ``window_rows`` samples in flight, whichever shard they belong to. Lives on one event loop.

    ``hedge`` asks twice for what a slow replica holds up at the end: only of use where there is another one.
    """

    def __init__(
        self, teacher: Teacher, *, window_rows: int, deadline_s: float, max_attempts: int, hedge: bool = False
    ) -> None:
        self._teacher = teacher
        self._window = Window(window_rows)
        self._alone = asyncio.Lock()
        self._deadline_s = deadline_s
        self._max_attempts = max_attempts
        self._hedge = hedge
        self._durations: deque[float] = deque(maxlen=64)  # of the latest calls (seconds)
        self._calls = count()
        self._returned = 0  # rows of all calls
        self._heard_at = -math.inf  # when the latest of them came
        self._rng = random.Random()

    @property
    def window_rows(self) -> int:
        """Samples that may be in flight now."""
        return self._window.rows

    @property
    def heard_at(self) -> float:
        """When the teacher has last sent a row (the loop's clock)."""
        return self._heard_at

    def resize(self, window_rows: int) -> None:
        """Keep so many samples in flight from now on. A call that is tried alone has to stay alone: then nothing."""
        if not self._alone.locked():
            self._window.resize(window_rows)

    async def complete(
        self,
        requests: list[GenerateRequest],
        place: int = 0,
        on_result: Callable[[GenerateResult], None] = lambda _: None,
    ) -> list[GenerateResult]:
        """One result a request, in order; a request that cannot be completed has an ``error``.

        They travel in one call. What has come back when a call goes wrong is kept; only the rest is asked for again.
        Calls of a lower ``place`` enter the window first. ``on_result`` is told of each result when it comes.
        """
        done = Results(place, on_result)
        await self._complete(requests, done)
        return [done[each.request_id] for each in requests]

    async def _complete(self, requests: list[GenerateRequest], done: Results) -> None:
        late = lost = 0
        for attempt in count():
            fault = await self._call(requests, done, alone=False)
            if fault is None:
                return
            requests = _left(requests, done)
            late += fault is Fault.LATE and await self._is_answering()
            lost += fault is Fault.LOST and await self._is_answering()
            if late >= self._max_attempts:
                _fail(requests, done, f"deadline: no answer in {late} times {self._deadline_s:.0f} s")
                return
            if lost >= LOSSES_IN_COMPANY:
                await self._isolate(requests, done)
                return
            await asyncio.sleep(self._pause(attempt))

    async def _isolate(self, requests: list[GenerateRequest], done: Results) -> None:
        """Complete a call that may end replicas, alone; a call that does is cut in halves."""
        for attempt in range(LOSSES_ALONE if len(requests) == 1 else 1):
            fault = await self._call(requests, done, alone=True)
            if fault is None:
                return
            requests = _left(requests, done)
            if fault is not Fault.LOST:  # late or busy: as any other call, and back here when it dies again
                await self._complete(requests, done)
                return
            await asyncio.sleep(self._pause(attempt))
        if len(requests) == 1:
            reason = f"poison: the replica died {LOSSES_ALONE} times while it answered this prompt alone"
            _fail(requests, done, reason)
            return
        half = len(requests) // 2
        await self._isolate(requests[:half], done)
        await self._isolate(requests[half:], done)

    async def _call(self, requests: list[GenerateRequest], done: Results, *, alone: bool) -> Fault | None:
        """Ask for the requests once and keep what comes back; the fault that ended it, None when all came."""
        if not requests:
            return None
        async with self._alone if alone else nullcontext():
            rows = self._window.rows if alone else sum(each.n for each in requests)
            taken = await self._window.enter(rows, done.place)

            def keep(result: GenerateResult, request: GenerateRequest) -> None:
                nonlocal taken
                if request.request_id in done:  # of a call that was asked twice
                    return
                done.add(result)
                if not alone:
                    freed = min(request.n, taken)
                    taken -= freed
                    self._window.leave(freed)

            try:
                if alone and not await self._is_answering():
                    return Fault.BUSY
                await (self._ask(requests, keep) if alone else self._ask_hedged(requests, done, keep))
            except Exception as error:
                fault = classify(error)
                if fault is None:
                    raise
                return fault
            finally:
                self._window.leave(taken)
        if left := _left(requests, done):
            raise RuntimeError(
                f"the teacher ended a call without an answer to {len(left)} of its {len(requests)} prompts"
            )
        return None

    async def _ask_hedged(self, requests: list[GenerateRequest], done: Results, keep: Keep) -> None:
        """Ask; where a call takes much longer than others did and nothing else waits, ask for the rest elsewhere too.

        What a slow replica holds at the end of a run would be waited for by all others. Whoever answers first is right:
        a row is the same whoever makes it.
        """
        clock = asyncio.get_running_loop().time
        started, calls, asked = clock(), {asyncio.create_task(self._ask(requests, keep))}, 1
        try:
            while True:
                ended, calls = await asyncio.wait(calls, timeout=HEDGE_LOOK_S, return_when=asyncio.FIRST_COMPLETED)
                if any(call.exception() is None for call in ended):
                    self._durations.append(clock() - started)
                    return
                if ended and not calls:
                    await ended.pop()  # raises
                if asked == 1 and self._is_slow(clock() - started):
                    asked = 2
                    calls.add(asyncio.create_task(self._ask(_left(requests, done), keep)))
        finally:
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)

    def _is_slow(self, seconds: float) -> bool:
        if not self._hedge or len(self._durations) < HEDGE_KNOWN_CALLS or self._window.free * 2 < self._window.rows:
            return False
        return seconds > HEDGE_AFTER * median(self._durations)

    async def _is_answering(self) -> bool:
        try:
            await self._ask([], lambda *_: None)
        except Exception as error:
            if classify(error) is None:
                raise
            return False
        return True

    async def _ask(self, requests: list[GenerateRequest], keep: Keep) -> None:
        # The engine must not meet an id twice: an attempt that was given up may still be running there.
        number = next(self._calls)
        sent = {f"{each.request_id}-{number}": each for each in requests}
        response = self._teacher.remote([replace(each, request_id=sent_id) for sent_id, each in sent.items()])
        try:
            async with asyncio.timeout(None) as limit:
                watch = asyncio.create_task(self._end_when_late(limit))
                try:
                    async for results in response:
                        for result in results:
                            request = sent[result.request_id]
                            self._returned += request.n
                            self._heard_at = asyncio.get_running_loop().time()
                            keep(replace(result, request_id=request.request_id), request)
                finally:
                    watch.cancel()
        except (TimeoutError, asyncio.CancelledError):
            response.cancel()
            raise

    async def _end_when_late(self, limit: asyncio.Timeout) -> None:
        """End a call that has just been sent once it is late.

        Engines answer about in order, so its turn has come when as many rows are back as were in flight before it.
        """
        clock = asyncio.get_running_loop().time
        sent_at = clock()
        all_ahead = self._returned + self._window.rows - self._window.free
        turn_at = math.inf
        while True:
            await asyncio.sleep(self._deadline_s / DEADLINE_LOOKS)
            now = clock()
            if self._returned >= all_ahead:
                turn_at = min(turn_at, now)
            if now - min(turn_at, max(sent_at, self._heard_at)) >= self._deadline_s:
                limit.reschedule(now)
                return

    def _pause(self, attempt: int) -> float:
        doubled = FIRST_PAUSE_S * 2.0 ** min(attempt, MOST_DOUBLINGS)
        return min(LONGEST_PAUSE_S, doubled) * self._rng.uniform(0.5, 1.5)


def classify(error: BaseException) -> Fault | None:
    """What an error says of the teacher; None for a fault of the run, which no retry mends."""
    return next((FAULTS[base.__name__] for base in type(error).__mro__ if base.__name__ in FAULTS), None)


def _left(requests: list[GenerateRequest], done: Results) -> list[GenerateRequest]:
    return [each for each in requests if each.request_id not in done]


def _fail(requests: list[GenerateRequest], done: Results, reason: str) -> None:
    for each in requests:
        done.add(GenerateResult(each.request_id, error=reason))
