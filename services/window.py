"""How many rows a client has in flight, counted over all of its calls."""

import asyncio
from collections import deque


class Window:
    """At most ``rows`` rows in flight, whichever calls they belong to; first come, first served."""

    def __init__(self, rows: int) -> None:
        self.rows = self.free = rows
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def enter(self, rows: int) -> int:
        """Wait until ``rows`` fit; more than the whole window are let in when it is empty. Returns what was taken."""
        rows = min(rows, self.rows)
        place = asyncio.get_running_loop().create_future()
        self._waiting.append((rows, place))
        self._admit()
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self.leave(rows)
            raise
        return rows

    def leave(self, rows: int) -> None:
        """Make room."""
        self.free += rows
        self._admit()

    def _admit(self) -> None:
        while self._waiting:
            rows, place = self._waiting[0]
            if not place.cancelled():
                if rows > self.free:
                    return
                self.free -= rows
                place.set_result(None)
            self._waiting.popleft()
