"""Packing loses nothing, overfills nothing, and packs tightly."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.packing import pack_rows

LENGTHS = st.lists(st.integers(1, 64), max_size=200)


@given(LENGTHS)
def test_pack_rows_any_lengths_holds_each_row_once_within_capacity(lengths: list[int]) -> None:
    packs = pack_rows(lengths, 64)
    assert sorted(row for pack in packs for row in pack) == list(range(len(lengths)))
    assert all(0 < sum(lengths[row] for row in pack) <= 64 for pack in packs)


@given(LENGTHS)
def test_pack_rows_any_lengths_leaves_at_most_one_pack_less_than_half_full(lengths: list[int]) -> None:
    packs = pack_rows(lengths, 64)
    assert sum(sum(lengths[row] for row in pack) * 2 < 64 for pack in packs) <= 1


@given(LENGTHS)
def test_pack_rows_same_lengths_gives_same_packs(lengths: list[int]) -> None:
    assert pack_rows(lengths, 64) == pack_rows(list(lengths), 64)


def test_pack_rows_best_fit_prefers_the_fullest_pack() -> None:
    # After 7, 6 and 5 of 10 the row of 3 fits exactly beside the 7.
    assert pack_rows([5, 7, 6, 3], 10) == [[1, 3], [2], [0]]


def test_pack_rows_long_tailed_window_is_997_permille_full() -> None:
    rng = random.Random(0)
    lengths = [min(4096, max(16, int(rng.lognormvariate(6.0, 0.8)))) for _ in range(4096)]
    packs = pack_rows(lengths, 4096)
    assert sum(lengths) / (len(packs) * 4096) >= 0.997


@pytest.mark.parametrize("length", [0, 65])
def test_pack_rows_length_out_of_range_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match=f"row 1 has {length} tokens"):
        pack_rows([3, length], 64)
