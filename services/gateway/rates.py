"""Amounts in the latest 60 seconds: exact, where counters of calendar minutes would let twice the limit pass."""

import math
from collections import deque
from dataclasses import dataclass, field

MINUTE_S = 60.0


@dataclass(slots=True)
class Entry:
    """An amount and when it came (seconds of a clock that only goes forward)."""

    at: float
    amount: int


@dataclass(slots=True)
class MinuteWindow:
    """What has been let in; it never holds more entries than the limit, as each is at least 1."""

    limit: int
    _entries: deque[Entry] = field(default_factory=deque)

    def wait_for(self, now: float, amount: int = 1) -> int:
        """Whole seconds until ``amount`` fits, 0 when it does; amounts above the limit never do."""
        self._forget(now)
        excess = sum(entry.amount for entry in self._entries) + amount - self.limit
        for entry in self._entries:
            if excess <= 0:
                break
            excess -= entry.amount
            leaves_in = entry.at + MINUTE_S - now
            if excess <= 0:
                return max(1, math.ceil(leaves_in))
        return 0 if excess <= 0 else math.ceil(MINUTE_S)

    def add(self, now: float, amount: int = 1) -> Entry:
        """Let it in. The entry's amount may be lowered once it is known what was used."""
        entry = Entry(now, amount)
        self._entries.append(entry)
        return entry

    def _forget(self, now: float) -> None:
        while self._entries and self._entries[0].at + MINUTE_S <= now:
            self._entries.popleft()
