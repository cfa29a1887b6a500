"""Plans one pass over rows that are still being written, window by window, as a function of their order and no clock.

Window k is made of the k-th ``packing_window_rows`` rows to train on, shuffled by (seed, k) and packed like any other.
Its packs queue behind those of the window before, and each step takes the next ``batch_sequences`` of them (or about
``batch_tokens`` loss tokens), so no step waits for rows that it does not need. What is left when no row can come any
more is one shorter window, and its steps are alike.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from configs.schema import TrainingConfig
from training.corpus import Corpus, Int64s
from training.plan import NO_ROWS, EpochPlan, build_plan, count_loss_tokens, cut_steps, pack_window


@dataclass(frozen=True, slots=True)
class WindowPlan:
    """The steps that became certain with a window, and the corpus row at which the window ends."""

    plan: EpochPlan
    end_row: int


class WindowPlanner:
    """Plans the windows of a corpus that grows at its end."""

    def __init__(self, config: TrainingConfig) -> None:
        self._config = config
        self._window = self._planned_rows = 0
        self._carried = NO_ROWS
        self._packs: list[Int64s] = []

    def extend(self, corpus: Corpus, *, is_complete: bool) -> Iterator[WindowPlan]:
        """Yield what follows from the rows that are there now, once; to be used up before the corpus grows further.

        With ``is_complete`` the corpus has all its rows and the last window is closed, however short it is.
        """
        rows = np.flatnonzero(corpus.is_training)[self._planned_rows :]
        size = self._config.packing_window_rows
        num_full = len(rows) // size
        for i in range(num_full):
            yield from self._close_window(corpus, rows[i * size : (i + 1) * size], is_last=False)
        if is_complete:
            yield from self._close_window(corpus, rows[num_full * size :], is_last=True)

    def _close_window(self, corpus: Corpus, rows: Int64s, *, is_last: bool) -> Iterator[WindowPlan]:
        rng = np.random.default_rng([self._config.seed, 0, self._window, 2])
        shuffled = rng.permutation(rows)
        packs, self._carried = pack_window(corpus, self._config, self._carried, shuffled, is_last=is_last)
        self._packs += [packs[i] for i in rng.permutation(len(packs))]
        self._window += 1
        self._planned_rows += len(rows)
        if not self._packs:
            return
        loss_tokens = count_loss_tokens(corpus, self._packs)
        starts = cut_steps(loss_tokens, self._config) if is_last else _cut_whole_steps(loss_tokens, self._config)
        num_packs = int(starts[-1])
        ready, self._packs = self._packs[:num_packs], self._packs[num_packs:]
        if ready:
            end_row = len(corpus.lengths) if is_last else int(rows[-1]) + 1
            yield WindowPlan(build_plan(corpus, self._config, ready, starts, [0, num_packs]), end_row)


def _cut_whole_steps(pack_loss_tokens: Int64s, config: TrainingConfig) -> Int64s:
    """Return the packs at which the steps begin that no further pack can change, and the end of the last of them."""
    num_packs = len(pack_loss_tokens)
    if config.batch_sequences is not None:
        return np.arange(0, num_packs + 1, config.batch_sequences)
    assert config.batch_tokens is not None
    starts, in_step = [0], 0
    for pack, tokens in enumerate(pack_loss_tokens.tolist()):
        # The boundary nearest to the batch is before this pack when less than half of it would still belong to it.
        if in_step and in_step + tokens / 2 > config.batch_tokens:
            starts.append(pack)
            in_step = 0
        in_step += tokens
    return np.array(starts)
