"""A key, schemes and cheap texts for the tests of watermarks, and the Kolmogorov-Smirnov distance."""

from collections.abc import Sequence
from functools import cache

import numpy as np

from benchmarks.marked_text import BigramTeacher
from configs.watermark import WatermarkKind, WatermarkScheme
from services.watermark.key import WatermarkKey

KEY = WatermarkKey.of("the key of the tests of watermarks")
OTHER_KEY = WatermarkKey.of("another key of the tests of watermarks")
GUMBEL = WatermarkScheme(kind=WatermarkKind.GUMBEL, context_tokens=3)
EIGHT_CHANNELS = WatermarkScheme(kind=WatermarkKind.GUMBEL, context_tokens=3, channels=8)
GREEN_LIST = WatermarkScheme(kind=WatermarkKind.GREEN_LIST, context_tokens=3)
TEACHER = BigramTeacher(vocabulary=128)
NUM_TEXTS, NUM_TOKENS = 400, 80


@cache
def unmarked_texts(seed: int = 1) -> list[list[int]]:
    """Texts of the teacher without a mark."""
    return TEACHER.write(NUM_TEXTS, NUM_TOKENS, seed)


@cache
def marked_texts(scheme: WatermarkScheme) -> list[list[int]]:
    """Texts with the mark of `KEY`."""
    return TEACHER.write(NUM_TEXTS, NUM_TOKENS, 2, KEY, scheme)


def distance_from_uniform(values: Sequence[float]) -> float:
    """Largest distance of the values' distribution from the uniform one, times the square root of their number.

    By chance it is above 1.95 once in a thousand times (Kolmogorov).
    """
    ordered, number = np.sort(values), len(values)
    below = ordered - np.arange(number) / number
    above = np.arange(1, number + 1) / number - ordered
    return float(max(below.max(), above.max()) * np.sqrt(number))
