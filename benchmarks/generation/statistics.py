"""Steady state of one run, between its ramp and its tail."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

STEADY_FROM, STEADY_TO = 0.05, 0.95  # of the rows, in order of their completion
WAVE = 0.02  # of the steady time: rows this near to its ends belong to the same wave as the rows there


@dataclass(frozen=True, slots=True)
class Completion:
    """One completed row: seconds since the run began, and its tokens.

    Example: ``Completion(at_s=1.5, tokens=128)``.
    """

    at_s: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Phases:
    """One run cut in three: until 5 % of the rows are done, the steady part, and from 95 % to the end (seconds)."""

    ramp_s: float
    steady_tokens_per_s: float
    tail_s: float


def cut_phases(completions: Sequence[Completion], seconds: float) -> Phases:
    """Steady state is the slope of tokens over time, by least squares, from the 5 % row to the 95 % row.

    Rows of one length that begin together also end together, in waves of as many rows as the engine decodes. Tokens
    over time between two rows would be wrong by up to a wave, depending on which row of it is the 5 % one; the slope is
    not, as long as the waves at both ends are whole. ``nan`` when all rows came at once.
    """
    at = np.asarray(sorted(each.at_s for each in completions))
    first, last = at[int(STEADY_FROM * (len(at) - 1))], at[int(np.ceil(STEADY_TO * (len(at) - 1)))]
    slack = WAVE * (last - first)
    steady = sorted(
        (each for each in completions if first - slack <= each.at_s <= last + slack), key=lambda each: each.at_s
    )
    times = np.asarray([each.at_s for each in steady])
    tokens = np.asarray([each.tokens for each in steady], dtype=float)
    made = np.cumsum(tokens) - tokens / 2
    centred = times - times.mean()
    spread = float(centred @ centred)
    slope = float(centred @ made) / spread if spread > 0 else float("nan")
    return Phases(float(first), slope, float(seconds - last))
