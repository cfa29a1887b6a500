"""Packing loses nothing, overfills nothing, and packs tightly."""

import numpy as np
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


@pytest.mark.parametrize(("median", "sigma"), [(400, 0.8), (250, 1.0), (1100, 0.8)])
def test_pack_rows_long_tailed_window_is_997_permille_full(median: float, sigma: float) -> None:
    lengths = np.random.default_rng(0).lognormal(np.log(median), sigma, 4096).clip(16, 4096).astype(int).tolist()
    packs = pack_rows(lengths, 4096)
    assert sum(lengths) / (len(packs) * 4096) >= 0.997


def test_pack_rows_lengths_that_are_alike_fill_every_pack_but_the_last_few() -> None:
    # Taking the longest first would leave 16 tokens of a sequence that 40s fill, and 30 where 38s do.
    lengths = np.random.default_rng(0).integers(37, 42, 4096).tolist()
    left = [4096 - sum(lengths[row] for row in pack) for pack in pack_rows(lengths, 4096)]
    assert sum(left[:-6]) == 0
    assert len(left) == -(-sum(lengths) // 4096)


@pytest.mark.parametrize("length", [0, 65])
def test_pack_rows_length_out_of_range_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match=f"row 1 has {length} tokens"):
        pack_rows([3, length], 64)
