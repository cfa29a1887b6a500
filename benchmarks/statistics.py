"""Numbers of a comparison: the ratio of two arms over pairs of runs, with the interval that the pairs support."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """A median with the bounds of its bootstrap interval."""

    median: float
    low: float
    high: float


def paired_ratio(ours: Sequence[float], theirs: Sequence[float], seed: int = 0) -> Interval:
    """Median of ``ours[i] / theirs[i]``; percentile bootstrap over the pairs."""
    if len(ours) != len(theirs) or not ours:
        raise ValueError(f"pairs are needed, not {len(ours)} and {len(theirs)} values")
    ratios = np.asarray(ours, dtype=float) / np.asarray(theirs, dtype=float)
    return median_interval(ratios.tolist(), seed)


def median_interval(values: Sequence[float], seed: int = 0) -> Interval:
    """Median of ``values``; percentile bootstrap over them. One value is its own interval."""
    if not values:
        raise ValueError("an interval needs at least one value")
    array = np.asarray(values, dtype=float)
    picks = np.random.default_rng(seed).integers(0, len(array), size=(RESAMPLES, len(array)))
    medians = np.median(array[picks], axis=1)
    low, high = np.quantile(medians, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(np.median(array)), float(low), float(high))
