"""Rows to complete: the same name, number and seed give the same rows in every process.

Completion lengths are part of a row, and the models of this benchmark never stop by themselves; so every arm makes the
same number of tokens for the same row.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from math import exp, log
from statistics import NormalDist

import numpy as np

CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,"
FIRST_ID = 3  # of a character: the tokenizer's special tokens come before
PROMPT_TOKENS = 32
FIXED_TOKENS = 128
TAIL_P50, TAIL_P99_OVER_P50 = 64, 8.0
TAIL_LONGEST = 1024
PREFIX_TOKENS, SUFFIX_TOKENS, PREFIX_COMPLETION_TOKENS = 512, 16, 16
ROWS_PER_PREFIX = 8
SAMPLES, SAMPLES_PROMPT_TOKENS, SAMPLES_COMPLETION_TOKENS = 4, 96, 32


class Name(StrEnum):
    """The workloads of the table."""

    FIXED = "fixed"
    LONG_TAIL = "long-tail"
    LONG_RUN = "long-run"  # the same in many shards
    PREFIX = "prefix"
    N4 = "n4"


@dataclass(frozen=True, slots=True)
class WorkItem:
    """A prompt to be completed ``n`` times with ``max_tokens`` tokens each; ``index`` is its place in the workload.

    Greedy, except for several samples of a prompt: greedy ones would be equal, and vLLM refuses them.
    """

    index: int
    token_ids: list[int]
    max_tokens: int
    n: int = 1
    temperature: float = 0.0

    @property
    def num_tokens(self) -> int:
        return self.n * self.max_tokens

    @property
    def text(self) -> str:
        """The prompt that the tokenizer of these models turns into ``token_ids``."""
        return "".join(CHARACTERS[each - FIRST_ID] for each in self.token_ids)


def build_workload(name: Name, num_rows: int, seed: int) -> list[WorkItem]:
    """``num_rows`` counts samples: four samples of a prompt are four rows."""
    rng = np.random.default_rng(seed)
    match name:
        case Name.FIXED:
            return [WorkItem(i, _draw(rng, PROMPT_TOKENS), FIXED_TOKENS) for i in range(num_rows)]
        case Name.LONG_TAIL | Name.LONG_RUN:
            lengths = _tail_lengths(num_rows, rng)
            return [WorkItem(i, _draw(rng, PROMPT_TOKENS), length) for i, length in enumerate(lengths)]
        case Name.PREFIX:
            prefixes = [_draw(rng, PREFIX_TOKENS) for _ in range(-(-num_rows // ROWS_PER_PREFIX))]
            return [
                WorkItem(i, prefixes[i // ROWS_PER_PREFIX] + _draw(rng, SUFFIX_TOKENS), PREFIX_COMPLETION_TOKENS)
                for i in range(num_rows)
            ]
        case Name.N4:
            prompts = (_draw(rng, SAMPLES_PROMPT_TOKENS) for _ in range(num_rows // SAMPLES))
            return [WorkItem(i, prompt, SAMPLES_COMPLETION_TOKENS, SAMPLES, 1.0) for i, prompt in enumerate(prompts)]


def shuffled(rows: list[WorkItem], seed: int) -> list[WorkItem]:
    """The same rows in an order that keeps no group together; indices follow the new order."""
    order = np.random.default_rng(seed).permutation(len(rows))
    return [replace(rows[int(place)], index=index) for index, place in enumerate(order)]


def duplicated(rows: list[WorkItem]) -> list[WorkItem]:
    """Each row of ``n`` samples as ``n`` rows of one, next to each other and sampled alike."""
    singles = [row for row in rows for _ in range(row.n)]
    return [replace(row, index=index, n=1) for index, row in enumerate(singles)]


def _draw(rng: np.random.Generator, length: int) -> list[int]:
    ids: list[int] = rng.integers(FIRST_ID, FIRST_ID + len(CHARACTERS), size=length).tolist()
    return ids


def _tail_lengths(num_rows: int, rng: np.random.Generator) -> list[int]:
    """Lognormal by its quantiles, in random order: the tail is as heavy as asked with any number of rows."""
    normal, spread = NormalDist(), log(TAIL_P99_OVER_P50) / NormalDist().inv_cdf(0.99)
    quantiles = ((i + 0.5) / num_rows for i in range(num_rows))
    lengths = [min(TAIL_LONGEST, max(1, round(TAIL_P50 * exp(spread * normal.inv_cdf(q))))) for q in quantiles]
    ordered: list[int] = rng.permutation(lengths).tolist()
    return ordered
