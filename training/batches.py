"""Turns an epoch's plan into this worker's tensors, a window of rows in memory at a time.

Shapes: B packed sequences, T tokens each, N loss tokens of the micro-batch, K candidates of the teacher.
"""

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from configs.schema import TrainingConfig
from training.corpus import Corpus, Row, RowReader
from training.parallel import World
from training.plan import EpochPlan


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One forward pass of one worker.

    ``position_ids_BT`` start at 0 with each document, and padding counts as a document. ``loss_index_N`` are the
    positions in the flattened batch whose hidden state predicts ``targets_N``. The teacher's candidates are there when
    the objective asks for them; those that a row lacks have a log-probability of -inf.
    """

    input_ids_BT: torch.Tensor
    position_ids_BT: torch.Tensor
    loss_index_N: torch.Tensor
    targets_N: torch.Tensor
    topk_ids_NK: torch.Tensor | None = None
    topk_logprobs_NK: torch.Tensor | None = None

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Return the fields in order, as the student's forward takes them."""
        fields = (self.input_ids_BT, self.position_ids_BT, self.loss_index_N, self.targets_N)
        if self.topk_ids_NK is None or self.topk_logprobs_NK is None:
            return fields
        return *fields, self.topk_ids_NK, self.topk_logprobs_NK

    def to(self, device: torch.device) -> "MicroBatch":
        """Return the same batch on ``device``."""
        if device.type == "cpu":
            return self
        return MicroBatch(*(tensor.pin_memory().to(device, non_blocking=True) for tensor in self.tensors()))


def iterate_steps(
    corpus: Corpus, plan: EpochPlan, config: TrainingConfig, world: World, pad_id: int, first_step: int = 0
) -> Generator[list[MicroBatch], None, None]:
    """Yield the micro-batches of this rank for each step of the epoch from ``first_step`` on.

    Group g of G takes packs g, g + G, … of a step; without tensor parallelism each rank is one. Every rank yields as
    many micro-batches of the same shape: where a step does not divide, empty packs without loss tokens fill up. Batches
    are made one step ahead on a thread.
    """
    steps = _assemble_steps(corpus, plan, config, world, pad_id, first_step)
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as executor:
        ahead = executor.submit(next, steps, None)
        while (step := ahead.result()) is not None:
            ahead = executor.submit(next, steps, None)
            yield step


def _assemble_steps(
    corpus: Corpus, plan: EpochPlan, config: TrainingConfig, world: World, pad_id: int, first_step: int
) -> Iterator[list[MicroBatch]]:
    with_topk = config.objective.kl_weight > 0
    packs = _iterate_own_packs(RowReader(corpus, with_topk), plan, world, int(plan.step_starts[first_step]))
    for step in range(first_step, plan.num_steps):
        first, end = plan.step_starts[step : step + 2].tolist()
        mine = [next(packs) for _ in range(first + world.data_rank, end, world.data_size)]
        per_rank = -(-(end - first) // world.data_size)
        mine += [[]] * (per_rank - len(mine))
        size = config.micro_batch_sequences
        micro_batches = (mine[i : i + size] for i in range(0, per_rank, size))
        yield [collate_packs(packs_of, config.sequence_length, pad_id, with_topk) for packs_of in micro_batches]


def _iterate_own_packs(reader: RowReader, plan: EpochPlan, world: World, first_pack: int) -> Iterator[list[Row]]:
    for window in range(len(plan.window_starts) - 1):
        numbers = np.arange(max(first_pack, plan.window_starts[window]), plan.window_starts[window + 1])
        step = np.searchsorted(plan.step_starts, numbers, side="right") - 1
        numbers = numbers[(numbers - plan.step_starts[step]) % world.data_size == world.data_rank]
        if not len(numbers):
            continue
        rows = reader.fetch(np.concatenate([plan.pack(p) for p in numbers]))
        for number in numbers:
            yield [rows.pop(int(row)) for row in plan.pack(number)]


def collate_packs(packs: list[list[Row]], sequence_length: int, pad_id: int, with_topk: bool = False) -> MicroBatch:
    """Return ``packs`` as one micro-batch; a pack may be empty."""
    input_ids = np.full((len(packs), sequence_length), pad_id, np.int64)
    position_ids = np.zeros((len(packs), sequence_length), np.int64)
    loss_index: list[np.ndarray] = []
    targets: list[np.ndarray] = []
    for place, pack in enumerate(packs):
        start = 0
        for row in pack:
            num_prompt, end = len(row.prompt), start + len(row.prompt) + len(row.completion)
            input_ids[place, start : start + num_prompt] = row.prompt
            input_ids[place, start + num_prompt : end] = row.completion
            position_ids[place, start:end] = np.arange(end - start)
            # The first token of a document without a prompt has nothing before it that could predict it.
            first_target = start + max(num_prompt, 1)
            loss_index.append(np.arange(first_target - 1, end - 1) + place * sequence_length)
            targets.append(input_ids[place, first_target:end])
            start = end
        position_ids[place, start:] = np.arange(sequence_length - start)
    empty = np.zeros(0, np.int64)
    return MicroBatch(
        torch.from_numpy(input_ids),
        torch.from_numpy(position_ids),
        torch.from_numpy(np.concatenate(loss_index or [empty])),
        torch.from_numpy(np.concatenate(targets or [empty])),
        *(_collate_topk([row for pack in packs for row in pack]) if with_topk else ()),
    )


def _collate_topk(rows: list[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the teacher's candidates at the loss tokens of ``rows``, as ids and log-probabilities."""
    starts = np.cumsum([0] + [len(row.completion) - (len(row.prompt) == 0) for row in rows])
    width = max((_num_candidates(row) for row in rows), default=0)
    ids = np.zeros((starts[-1], max(width, 1)), np.int64)
    logprobs = np.full(ids.shape, -np.inf, np.float32)
    for row, start, end in zip(rows, starts, starts[1:], strict=False):
        if (k := _num_candidates(row)) and row.topk_ids is not None and row.topk_logprobs is not None:
            ids[start:end, :k] = row.topk_ids.reshape(-1, k)[start - end :]
            logprobs[start:end, :k] = row.topk_logprobs.reshape(-1, k)[start - end :]
    return torch.from_numpy(ids), torch.from_numpy(logprobs)


def _num_candidates(row: Row) -> int:
    return 0 if row.topk_ids is None else len(row.topk_ids) // len(row.completion)
