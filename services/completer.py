"""Asks the teacher for the prompts of a shard: in which order, in which calls, and once more for what was cut off.

Several shards are under way at once and share the requester's window. An older shard's calls enter it before a newer
one's, and what is asked for again before all others, so that a shard is open for little longer than its longest row.
"""

import asyncio
from dataclasses import replace
from itertools import count

from configs.schema import GenerationConfig, SamplingConfig, TruncationPolicy
from services.generation import GenerateRequest, GenerateResult
from services.order import LengthEstimate, cut_calls, in_groups
from services.requester import Requester

CALLS_IN_WINDOW = 5  # at least: while one waits for room, four are with the engine
FIRST_PLACE = 0  # of a row that is asked for again: whatever waits for the window has not begun yet


class Completer:
    """Lives on the client's event loop."""

    def __init__(self, requester: Requester, generation: GenerationConfig) -> None:
        self._requester = requester
        self._generation = generation
        self._lengths = LengthEstimate()
        self._places = count(FIRST_PLACE + 1)  # of the shards, as they are opened

    async def complete(self, requests: list[GenerateRequest], sampling: SamplingConfig) -> dict[str, GenerateResult]:
        """One result a request, by its id. A request that fails when it is asked again keeps its first result."""
        place, wanted = next(self._places), {each.request_id: each for each in requests}
        limit = _second_limit(sampling)
        second: list[asyncio.Task[list[GenerateResult]]] = []

        def look(result: GenerateResult) -> None:
            request = wanted[result.request_id]
            self._lengths.learn(request, result)
            if limit is not None and any(sample.finish_reason == "length" for sample in result.samples):
                longer = [replace(request, max_tokens=limit)]
                second.append(group.create_task(self._requester.complete(longer, FIRST_PLACE)))

        try:
            async with asyncio.TaskGroup() as group:
                calls = self._calls(requests)
                first = [group.create_task(self._requester.complete(call, place, look)) for call in calls]
        except ExceptionGroup as faults:  # of the run: the first says why it stops
            raise faults.exceptions[0] from None
        return {each.request_id: each for call in first for each in call.result()} | {
            each.request_id: each for call in second for each in call.result() if each.error is None
        }

    def _calls(self, requests: list[GenerateRequest]) -> list[list[GenerateRequest]]:
        # Calls enter the window as a whole, so a small window is filled by small ones.
        samples = min(self._generation.rows_per_call, self._requester.window_rows // CALLS_IN_WINDOW)
        most = max(1, samples // max((each.n for each in requests), default=1))
        reorder = self._generation.reorder
        return cut_calls(in_groups(requests, self._lengths) if reorder else [[each] for each in requests], most)


def _second_limit(sampling: SamplingConfig) -> int | None:
    """Tokens that a truncated row may have when it is asked for again; None when it is not."""
    if sampling.truncation is not TruncationPolicy.RETRY_ONCE:
        return None
    return sampling.retry_max_tokens or 2 * sampling.max_tokens
