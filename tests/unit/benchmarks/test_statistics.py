"""The ratio of two arms and its interval."""

import pytest

from benchmarks.statistics import median_interval, paired_ratio

pytestmark = pytest.mark.unit


def test_paired_ratio_is_of_pairs_and_not_of_medians() -> None:
    ratio = paired_ratio([10, 20, 40], [5, 10, 20])
    assert (ratio.low, ratio.median, ratio.high) == (2.0, 2.0, 2.0)


def test_paired_ratio_interval_is_repeatable_and_holds_the_median() -> None:
    ours, theirs = [1.0, 1.1, 0.9, 1.2, 1.05, 0.95, 1.0], [1.0] * 7
    ratio = paired_ratio(ours, theirs)
    assert ratio == paired_ratio(ours, theirs)
    assert 0.9 <= ratio.low < ratio.median < ratio.high <= 1.2


def test_paired_ratio_refuses_unequal_numbers() -> None:
    with pytest.raises(ValueError, match="not 1 and 2 values"):
        paired_ratio([1.0], [1.0, 2.0])


def test_median_interval_of_one_value_is_that_value() -> None:
    interval = median_interval([0.25])
    assert (interval.low, interval.median, interval.high) == (0.25, 0.25, 0.25)


def test_median_interval_one_outlier_moves_neither_median_nor_bounds_to_it() -> None:
    interval = median_interval([1.0] * 8 + [100.0])
    assert (interval.low, interval.median, interval.high) == (1.0, 1.0, 1.0)


def test_median_interval_without_values_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one value"):
        median_interval([])
