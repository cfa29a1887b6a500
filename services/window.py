"""How many rows a client has in flight, counted over all of its calls."""

import asyncio
from heapq import heappop, heappush
from itertools import count


class Window:
    """At most ``rows`` rows in flight, whichever calls they belong to; lower places first, then first come."""

    def __init__(self, rows: int) -> None:
        self.rows = self.free = rows
        self._waiting: list[tuple[int, int, int, asyncio.Future[int]]] = []  # a heap
        self._arrivals = count()

    async def enter(self, rows: int, place: int = 0) -> int:
        """Wait until ``rows`` fit and nobody waits at a lower ``place``; returns what was taken.

        More than the whole window are let in when it is empty.
        """
        entered = asyncio.get_running_loop().create_future()
        heappush(self._waiting, (place, next(self._arrivals), rows, entered))
        self._admit()
        try:
            return await entered
        except asyncio.CancelledError:
            self.leave(0 if entered.cancelled() else entered.result())
            raise

    def leave(self, rows: int) -> None:
        """Make room."""
        self.free += rows
        self._admit()

    def resize(self, rows: int) -> None:
        """Let in more from now on, or fewer: then none until so many have left."""
        self.free += rows - self.rows
        self.rows = rows
        self._admit()

    def _admit(self) -> None:
        while self._waiting:
            _, _, rows, entered = self._waiting[0]
            if not entered.cancelled():
                taken = min(rows, self.rows)  # known only now: the window may have another size than before
                if taken > self.free:
                    return
                self.free -= taken
                entered.set_result(taken)
            heappop(self._waiting)
