"""Which rows make which packed sequence of which step: a function of (seed, epoch, lengths) and of nothing else.

Row groups are shuffled, neighbours pooled into windows of about ``packing_window_rows``, rows shuffled within their
window, windows packed and their packs shuffled. So reading stays local, and no worker count changes the order. Packs
that are not full are taken apart and packed once more with the window after.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from configs.schema import TrainingConfig
from training.corpus import Corpus, Int64s
from training.packing import pack_rows

# Row tokens of a pack, as a part of its room, from which no second try is worth it.
_FULL = 0.997
NO_ROWS: Int64s = np.zeros(0, np.int64)


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

    def step_rows(self, step: int) -> Int64s:
        """Return the corpus rows of one step, over all workers."""
        first, end = self.pack_starts[self.step_starts[step : step + 2]]
        return self.rows[first:end]

    def pack(self, number: int) -> Int64s:
        """Return the corpus rows of one pack."""
        return self.rows[self.pack_starts[number] : self.pack_starts[number + 1]]


def plan_epoch(corpus: Corpus, config: TrainingConfig, epoch: int) -> EpochPlan:
    """Return the plan of one training epoch (from 0)."""
    windows = _shuffled_windows(corpus, config, epoch)
    return _plan_windows(corpus, config, windows, np.random.default_rng([config.seed, epoch, 1]))


def plan_evaluation(corpus: Corpus, config: TrainingConfig, end_row: int | None = None) -> EpochPlan | None:
    """Return the plan of one pass over the held-back rows before ``end_row``, in file order; None without any."""
    rows = np.flatnonzero(corpus.is_evaluation[:end_row])
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
    packs: list[Int64s] = []
    window_starts, carried = [0], NO_ROWS
    all_windows = list(windows)
    for place, window in enumerate(all_windows):
        is_last = place == len(all_windows) - 1
        of_window, carried = pack_window(corpus, config, carried, window, is_last=is_last)
        # Long rows are packed first; unshuffled, each window would be a curriculum.
        packs.extend(of_window[i] for i in rng.permutation(len(of_window)))
        window_starts.append(len(packs))
    step_starts = cut_steps(count_loss_tokens(corpus, packs), config)
    return build_plan(corpus, config, packs, step_starts, window_starts)


def build_plan(
    corpus: Corpus, config: TrainingConfig, packs: list[Int64s], step_starts: Int64s, window_starts: list[int]
) -> EpochPlan:
    """Return the plan of these packs, of which there is one at least."""
    all_rows = np.concatenate(packs)
    pack_starts = np.concatenate([[0], np.cumsum([len(pack) for pack in packs])])
    step_rows = pack_starts[step_starts[:-1]]
    return EpochPlan(
        rows=all_rows,
        pack_starts=pack_starts,
        step_starts=step_starts,
        step_tokens=np.add.reduceat(corpus.lengths[all_rows], step_rows, dtype=np.int64),
        step_loss_tokens=np.add.reduceat(corpus.loss_lengths[all_rows], step_rows, dtype=np.int64),
        window_starts=np.array(window_starts),
        fill=float(corpus.lengths[all_rows].sum() / (len(packs) * config.sequence_length)),
    )


def count_loss_tokens(corpus: Corpus, packs: list[Int64s]) -> Int64s:
    """Return the loss tokens of each pack, of which there is one at least."""
    starts = np.cumsum([0] + [len(pack) for pack in packs[:-1]])
    loss_tokens: Int64s = np.add.reduceat(corpus.loss_lengths[np.concatenate(packs)], starts, dtype=np.int64)
    return loss_tokens


def pack_window(
    corpus: Corpus, config: TrainingConfig, carried: Int64s, window: Int64s, *, is_last: bool
) -> tuple[list[Int64s], Int64s]:
    """Return the packs of a window and of the rows carried over to it, and the rows to carry on.

    A row waits for the next window at most once, so reading stays local; nothing waits after the last one.
    """
    rows = np.concatenate([carried, window])
    lengths = corpus.lengths[rows].tolist()
    packs: list[Int64s] = []
    waiting: list[int] = []
    for pack in pack_rows(lengths, config.sequence_length):
        is_full = sum(lengths[i] for i in pack) >= _FULL * config.sequence_length
        if is_full or min(pack) < len(carried) or is_last:
            packs.append(rows[pack])
        else:
            waiting += pack
    return packs, rows[np.sort(np.array(waiting, np.int64))]


def cut_steps(pack_loss_tokens: Int64s, config: TrainingConfig) -> Int64s:
    """Return the packs at which steps begin, and the end: steps are alike, so that none weighs more than it holds."""
    num_packs = len(pack_loss_tokens)
    if config.batch_sequences is not None:
        num_steps = -(-num_packs // config.batch_sequences)
        return np.arange(num_steps + 1) * num_packs // num_steps
    assert config.batch_tokens is not None
    ends = np.cumsum(pack_loss_tokens)
    num_steps = max(1, round(ends[-1] / config.batch_tokens))
    # Each boundary is the one between packs that is nearest to an even share; a pack of several shares is one step.
    middles = ends - pack_loss_tokens / 2
    shares = np.arange(1, num_steps) * ends[-1] / num_steps
    return np.unique(np.concatenate([[0], np.searchsorted(middles, shares), [num_packs]]))
