"""What a replica knows that decides how many of them there should be: its own speed, and what the run has told it.

Serve carries it to `services.scaling` with the metrics of its own, so there is no further actor that could be gone.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from services.generation import GenerateResult

MEMORY_S = 120.0  # what was measured before counts half as much after this much work
KNOWN_AFTER_S = 3.0  # of work; before, a speed is a guess


class Meter:
    """Counts the answers of one replica. All calls are on the replica's event loop.

    Rows come back whole, so a replica that has just begun has made tokens that nobody has seen. Its clock starts
    with the first answer and stops without calls: what comes after that is what was made meanwhile.
    """

    def __init__(
        self,
        cold_start_s: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._cold_start_s = cold_start_s
        self._clock, self._wall_clock = clock, wall_clock
        self._calls = 0
        self._since: float | None = None
        self._busy_s = self._tokens = 0.0
        self._rows = self._row_tokens = 0
        self._answered_at = -math.inf
        self._told: dict[str, float] = {"rows": 0.0, "ends_at": 0.0, "told_at": 0.0}

    @contextmanager
    def call(self) -> Iterator[None]:
        """Around each call of rows."""
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1
            if self._calls == 0:
                self._since = None

    def count(self, results: list[GenerateResult]) -> None:
        """Inside of `call`: answers that are about to be returned."""
        lengths = [len(sample.token_ids) for result in results for sample in result.samples]
        self._rows += len(lengths)
        self._row_tokens += sum(lengths)
        now = self._clock()
        if results:
            self._answered_at = now
        if self._since is not None:
            self._forget(now - self._since)
            self._busy_s += now - self._since
            self._tokens += sum(lengths)
        if lengths:
            self._since = now

    def tell(self, rows: int, seconds_left: float | None) -> float:
        """What the run has to say of its backlog; None without a deadline. Returns seconds since the last answer."""
        now = self._wall_clock()
        ends_at = 0.0 if seconds_left is None else max(1.0, now + seconds_left)
        self._told = {"rows": float(rows), "ends_at": ends_at, "told_at": now}
        return self._clock() - self._answered_at

    def report(self) -> dict[str, float]:
        """For Serve, which carries numbers alone: 0 stands for what is not known."""
        known = self._busy_s >= KNOWN_AFTER_S and self._rows > 0
        return self._told | {
            "tokens_per_s": self._tokens / self._busy_s if known else 0.0,
            "tokens_per_row": self._row_tokens / self._rows if known else 0.0,
            "cold_start_s": self._cold_start_s,
        }

    def _forget(self, passed_s: float) -> None:
        kept = 0.5 ** (passed_s / MEMORY_S)
        self._busy_s *= kept
        self._tokens *= kept
