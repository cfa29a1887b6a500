"""Lossless best-fit packing of rows into sequences of one length; pure and deterministic.

Best-fit decreasing (Ding et al. 2024, "Fewer Truncations Improve Language Modeling"): rows by falling length, each
into the fullest sequence it still fits in, no row split. `training.plan` calls it once a window.
"""

from collections.abc import Sequence


def pack_rows(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Return packs, each a list of indices into ``lengths`` whose lengths sum to at most ``capacity``.

    Every index is in exactly one pack. Ties keep the order of ``lengths``. A length of 0 or above ``capacity``
    raises ValueError.

    >>> pack_rows([3, 5, 2, 6], capacity=8)
    [[3, 2], [1, 0]]
    """
    packs: list[list[int]] = []
    open_packs: list[list[int]] = [[] for _ in range(capacity + 1)]  # by room left
    # Bit r is set while some pack has room r: the lowest bit at or above a length is its best fit, found by
    # arithmetic on one big integer (capacity / 8 bytes), faster in Python than any tree.
    rooms = 0
    for row in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[row]
        if not 0 < length <= capacity:
            raise ValueError(f"row {row} has {length} tokens, outside 1..{capacity}")
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            pack = open_packs[room].pop()
            if not open_packs[room]:
                rooms ^= 1 << room
            packs[pack].append(row)
        else:
            room, pack = capacity, len(packs)
            packs.append([row])
        left = room - length
        if left:
            open_packs[left].append(pack)
            rooms |= 1 << left
    return packs
