"""Which rows make which packed sequence of which step: a function of (seed, epoch, lengths) and of nothing else.

Row groups are shuffled, neighbours pooled into windows of about ``packing_window_rows``, rows shuffled within their
window, windows packed and their packs shuffled. So reading stays local, and no worker count changes the order.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from configs.schema import TrainingConfig
from training.corpus import Corpus, Int64s
from training.packing import pack_rows


@dataclass(frozen=True, slots=True)
class EpochPlan:
    """The packs of one pass over the rows, in order.

    Pack p holds the corpus rows ``rows[pack_starts[p]:pack_starts[p + 1]]``; step s takes the packs from
    ``step_starts[s]`` to ``step_starts[s + 1]``, holds ``step_tokens[s]`` row tokens and ``step_loss_tokens[s]`` of
    them bear a loss, over all workers. Packs from ``window_starts[w]`` on share the row groups of window w.
    """

    rows: Int64s
    pack_starts: Int64s
    step_starts: Int64s
    step_tokens: Int64s
    step_loss_tokens: Int64s
    window_starts: Int64s
    fill: float

    @property
    def num_steps(self) -> int:
        """Optimiser steps of the epoch."""
        return len(self.step_starts) - 1

    def pack(self, number: int) -> Int64s:
        """Return the corpus rows of one pack."""
        return self.rows[self.pack_starts[number] : self.pack_starts[number + 1]]


def plan_epoch(corpus: Corpus, config: TrainingConfig, epoch: int) -> EpochPlan:
    """Return the plan of one training epoch (from 0)."""
    windows = _shuffled_windows(corpus, config, epoch)
    return _plan_windows(corpus, config, windows, np.random.default_rng([config.seed, epoch, 1]))


def plan_evaluation(corpus: Corpus, config: TrainingConfig) -> EpochPlan | None:
    """Return the plan of one pass over the held-back rows, in file order; None when none is held back."""
    rows = np.flatnonzero(corpus.is_evaluation)
    if not len(rows):
        return None
    windows = np.array_split(rows, max(1, round(len(rows) / config.packing_window_rows)))
    return _plan_windows(corpus, config, windows, np.random.default_rng(config.seed))


def _shuffled_windows(corpus: Corpus, config: TrainingConfig, epoch: int) -> Iterator[Int64s]:
    rng = np.random.default_rng([config.seed, epoch, 0])
    pool: list[Int64s] = []
    pooled = 0
    order = rng.permutation(len(corpus.groups))
    for place, number in enumerate(order):
        group = corpus.groups[number]
        is_training = corpus.is_training[group.first_row : group.first_row + group.num_rows]
        pool.append(np.flatnonzero(is_training) + group.first_row)
        pooled += len(pool[-1])
        if pooled and (pooled >= config.packing_window_rows or place == len(order) - 1):
            rows = rng.permutation(np.concatenate(pool))
            # Equal windows: a short one at the end of a large row group would pack badly.
            yield from np.array_split(rows, max(1, round(pooled / config.packing_window_rows)))
            pool, pooled = [], 0


def _plan_windows(
    corpus: Corpus, config: TrainingConfig, windows: Iterable[Int64s], rng: np.random.Generator
) -> EpochPlan:
    rows: list[Int64s] = []
    sizes: list[int] = []
    window_starts = [0]
    for window in windows:
        packs = pack_rows(corpus.lengths[window].tolist(), config.sequence_length)
        # Best-fit decreasing returns packs of long rows first; unshuffled, each window would be a curriculum.
        order = rng.permutation(len(packs))
        rows.extend(window[packs[i]] for i in order)
        sizes.extend(len(packs[i]) for i in order)
        window_starts.append(len(sizes))
    all_rows = np.concatenate(rows)
    pack_starts = np.concatenate([[0], np.cumsum(sizes)])
    num_packs = len(sizes)
    # Steps of equal size, at most batch_sequences: a last step of one lone pack would weigh as much as a full one.
    num_steps = -(-num_packs // config.batch_sequences)
    step_starts = np.arange(num_steps + 1) * num_packs // num_steps
    step_rows = pack_starts[step_starts[:-1]]
    return EpochPlan(
        rows=all_rows,
        pack_starts=pack_starts,
        step_starts=step_starts,
        step_tokens=np.add.reduceat(corpus.lengths[all_rows], step_rows, dtype=np.int64),
        step_loss_tokens=np.add.reduceat(corpus.loss_lengths[all_rows], step_rows, dtype=np.int64),
        window_starts=np.array(window_starts),
        fill=float(corpus.lengths[all_rows].sum() / (num_packs * config.sequence_length)),
    )
