"""How a replica answers a micro-batch: rows leave as they are done, those of a quarter of a second together.

A row does not wait for the slowest of its call, so a client's window never fills up with rows that are done; and a
message is not sent for each of them, which would cost half a millisecond of the replica's core a row.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Iterable

from services.generation import GenerateResult

FLUSH_S = 0.25


async def yield_in_groups(rows: Iterable[Awaitable[GenerateResult]]) -> AsyncGenerator[list[GenerateResult]]:
    """Yield the results as they come, at once when all are there; an error of any row ends it.

    Whoever stops listening cancels the rows that are left, and with them the engine's work.
    """
    pending = {asyncio.ensure_future(row) for row in rows}
    try:
        while pending:
            done, pending = await asyncio.wait(pending, timeout=FLUSH_S)
            if done:
                yield [row.result() for row in done]
    finally:
        for row in pending:
            row.cancel()
