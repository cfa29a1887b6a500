"""Turns an epoch's plan into this worker's tensors, a window of rows in memory at a time.

Shapes: B packed sequences, T tokens each, N loss tokens of the micro-batch.
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
    positions in the flattened batch whose hidden state predicts ``targets_N``.
    """

    input_ids_BT: torch.Tensor
    position_ids_BT: torch.Tensor
    loss_index_N: torch.Tensor
    targets_N: torch.Tensor

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the fields in order, as the student's forward takes them."""
        return self.input_ids_BT, self.position_ids_BT, self.loss_index_N, self.targets_N

    def to(self, device: torch.device) -> "MicroBatch":
        """Return the same batch on ``device``."""
        if device.type == "cpu":
            return self
        return MicroBatch(*(tensor.pin_memory().to(device, non_blocking=True) for tensor in self.tensors()))


def iterate_steps(
    corpus: Corpus, plan: EpochPlan, config: TrainingConfig, world: World, pad_id: int, first_step: int = 0
) -> Generator[list[MicroBatch], None, None]:
    """Yield the micro-batches of this rank for each step of the epoch from ``first_step`` on.

    Rank r of W takes packs r, r + W, … of a step. Every rank yields as many micro-batches of the same shape: where a
    step does not divide, empty packs without loss tokens fill up. Batches are made one step ahead on a thread.
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
    packs = _iterate_own_packs(corpus, plan, world, int(plan.step_starts[first_step]))
    for step in range(first_step, plan.num_steps):
        first, end = plan.step_starts[step : step + 2].tolist()
        mine = [next(packs) for _ in range(first + world.rank, end, world.size)]
        per_rank = -(-(end - first) // world.size)
        mine += [[]] * (per_rank - len(mine))
        size = config.micro_batch_sequences
        yield [collate_packs(mine[i : i + size], config.sequence_length, pad_id) for i in range(0, per_rank, size)]


def _iterate_own_packs(corpus: Corpus, plan: EpochPlan, world: World, first_pack: int) -> Iterator[list[Row]]:
    reader = RowReader(corpus)
    for window in range(len(plan.window_starts) - 1):
        numbers = np.arange(max(first_pack, plan.window_starts[window]), plan.window_starts[window + 1])
        step = np.searchsorted(plan.step_starts, numbers, side="right") - 1
        numbers = numbers[(numbers - plan.step_starts[step]) % world.size == world.rank]
        if not len(numbers):
            continue
        rows = reader.fetch(np.concatenate([plan.pack(p) for p in numbers]))
        for number in numbers:
            yield [rows.pop(int(row)) for row in plan.pack(number)]


def collate_packs(packs: list[list[Row]], sequence_length: int, pad_id: int) -> MicroBatch:
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
    )
