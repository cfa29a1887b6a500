"""Lossless packing of rows into sequences of one length; pure and deterministic.

Each pack takes the longest waiting row, then long rows while more than two are missing, and closes with the one or two
rows that fill it exactly. No row is split. `training.plan` calls it once a window.
"""

from collections.abc import Sequence

# A pair this part of a sequence short of it is as good as an exact one (4 tokens of 4,096).
_TOLERANCE = 1024


def pack_rows(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Return packs, each a list of indices into ``lengths`` whose lengths sum to at most ``capacity``.

    Every index is in exactly one pack. Rows of one length are taken in their order. A pack is closed when no waiting
    row fits, so at most one is less than half full. A length of 0 or above ``capacity`` raises ValueError.

    >>> pack_rows([3, 5, 2, 6], capacity=8)
    [[3, 2], [1, 0]]
    """
    waiting = _Waiting(lengths, capacity)
    packs: list[list[int]] = []
    while waiting.longest(capacity):
        pack, room = [], capacity
        while chosen := _choose_lengths(waiting, room):
            pack += [waiting.take(length) for length in chosen]
            room -= sum(chosen)
        packs.append(pack)
    return packs


class _Waiting:
    """The rows not packed yet, by length.

    Bit L of ``_present`` is set while a row of length L waits, bit ``capacity - L`` of ``_mirrored`` likewise: which
    lengths fit, and which two add up, is arithmetic on two big integers (capacity / 8 bytes), faster in Python than
    any tree.
    """

    def __init__(self, lengths: Sequence[int], capacity: int) -> None:
        self.capacity = capacity
        self._rows: list[list[int]] = [[] for _ in range(capacity + 1)]
        for row in range(len(lengths) - 1, -1, -1):
            if not 0 < lengths[row] <= capacity:
                raise ValueError(f"row {row} has {lengths[row]} tokens, outside 1..{capacity}")
            self._rows[lengths[row]].append(row)
        self._present = sum(1 << length for length, rows in enumerate(self._rows) if rows)
        self._mirrored = sum(1 << (capacity - length) for length, rows in enumerate(self._rows) if rows)

    def take(self, length: int) -> int:
        """Remove and return the first row of this length."""
        rows = self._rows[length]
        row = rows.pop()
        if not rows:
            self._present ^= 1 << length
            self._mirrored ^= 1 << (self.capacity - length)
        return row

    def count(self, length: int) -> int:
        """Return how many rows of this length wait."""
        return len(self._rows[length])

    def longest(self, room: int) -> int:
        """Return the longest waiting length that fits, 0 when none does."""
        return max((self._present & ((2 << room) - 1)).bit_length() - 1, 0)

    def shortest(self) -> int:
        """Return the shortest waiting length."""
        return (self._present & -self._present).bit_length() - 1

    def find_pair(self, total: int) -> list[int]:
        """Return the lengths of two rows that add up to ``total``, the most unequal ones; none when there are none."""
        pairs = self._present & (self._mirrored >> (self.capacity - total))
        if total % 2 == 0 and len(self._rows[total // 2]) == 1:
            pairs &= ~(1 << (total // 2))
        longer = pairs.bit_length() - 1
        return [longer, total - longer] if pairs else []


def _choose_lengths(waiting: _Waiting, room: int) -> list[int]:
    """Return the lengths of the next rows of a pack with this much room; none when nothing fits."""
    longest = waiting.longest(room)
    if not longest:
        return []
    fewest = -(-room // longest)  # rows that can fill the room
    if fewest <= 2:
        for short in range(min(room - longest, 1 + waiting.capacity // _TOLERANCE)):
            if pair := waiting.find_pair(room - short):
                return pair
        return [longest]
    # Where lengths are alike, two rows cannot make up for what the longest leave: some of the rows must be shorter.
    shortest = waiting.shortest()
    num_shorter = -(-(fewest * longest - room) // max(longest - shortest, 1))
    num_longest = min(waiting.count(longest), fewest - 2 - num_shorter)
    if num_longest > 0:
        return [longest] * num_longest
    return [waiting.longest(max(room - (fewest - 1) * shortest, 0)) or longest]
