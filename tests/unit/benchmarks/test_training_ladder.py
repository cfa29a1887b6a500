"""What the ladder's rungs make of packed tensors: the same documents, padded, and the same loss tokens."""

import pytest
import torch

from benchmarks.training.rung import (
    count_loss_tokens,
    measure_documents,
    pad_documents,
    split_documents,
    to_micro_batch,
)

pytestmark = pytest.mark.unit

# Two documents of 3 and 2 tokens, then padding; one document of 6.
PACKED = {
    "input_ids": torch.tensor([[5, 6, 7, 8, 9, 0], [11, 12, 13, 14, 15, 16]]),
    "position_ids": torch.tensor([[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 4, 5]]),
    "labels": torch.tensor([[6, 7, -1, 9, -1, -1], [-1, -1, 14, 15, 16, -1]]),
}


def test_split_documents_leaves_the_padding_out() -> None:
    assert [each["input_ids"].tolist() for each in split_documents(PACKED)] == [
        [5, 6, 7],
        [8, 9],
        [11, 12, 13, 14, 15, 16],
    ]
    assert measure_documents([PACKED]).tolist() == [3, 2, 6]


def test_pad_documents_keeps_every_label_within_the_room_of_a_packed_micro_batch() -> None:
    padded = pad_documents([PACKED])
    assert [tuple(each["input_ids"].shape) for each in padded] == [(2, 3), (1, 6)]
    assert padded[0]["input_ids"].tolist() == [[5, 6, 7], [8, 9, 0]]
    assert padded[0]["labels"].tolist() == [[6, 7, -1], [9, -1, -1]]
    assert count_loss_tokens(padded) == count_loss_tokens([PACKED]) == 6


def test_to_micro_batch_targets_are_the_labels_of_their_positions() -> None:
    micro_batch = to_micro_batch(PACKED)
    assert micro_batch.loss_index_N.tolist() == [0, 1, 3, 8, 9, 10]
    assert micro_batch.targets_N.tolist() == [6, 7, 9, 14, 15, 16]
