"""One rung of the ladder as a process: ``python -m benchmarks.training.rung JSON`` prints what it measured as JSON.

Shapes: B sequences, T tokens each, N loss tokens of the micro-batch.
"""

import gc
import json
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from benchmarks.training.ladder import WARM_UP_STEPS, Climb, Rung
from benchmarks.training.shapes import SHAPES, build_random_model
from benchmarks.training.workload import NO_LOSS
from configs.schema import Attention, LossKernel, OptimizerConfig, TrainingConfig
from training.batches import MicroBatch
from training.flops import count_flops, peak_flops
from training.loss import StudentWithLoss
from training.metrics import peak_memory_mib
from training.model import find_decoder_layers
from training.parallel import World, shard_model
from training.schedule import build_optimizer


class WithLogits(torch.nn.Module):
    """The model with the loss that is written first: the logits of every position, then cross-entropy."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids_BT: torch.Tensor,
        position_ids_BT: torch.Tensor,
        loss_index_N: torch.Tensor,
        targets_N: torch.Tensor,
    ) -> torch.Tensor:
        """Return the summed cross-entropy of the loss tokens."""
        logits_BTV = self.model(input_ids=input_ids_BT, position_ids=position_ids_BT, use_cache=False).logits
        targets = torch.full_like(input_ids_BT, NO_LOSS).flatten()
        targets[loss_index_N] = targets_N
        return cross_entropy(logits_BTV.float().flatten(0, 1), targets, ignore_index=NO_LOSS, reduction="sum")


def main(arguments: list[str]) -> int:
    """Measure one rung."""
    climb_told, rung_told = json.loads(arguments[0])
    climb, rung = Climb(**climb_told), Rung(**rung_told)
    device = torch.device(climb.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    world = World(0, 1, device)
    config = TrainingConfig(
        sequence_length=climb.sequence_length, dtype=climb.dtype, compile=rung.is_compiled, optimizer=OptimizerConfig()
    )
    student, model = _build_student(climb, rung, config, world)
    optimizer = build_optimizer(student, config.optimizer)
    flops = count_flops(model)
    paths = sorted(Path(climb.tensors).glob("step-*.pt"))[: WARM_UP_STEPS + climb.steps]
    if len(paths) < WARM_UP_STEPS + climb.steps:
        raise ValueError(f"{climb.tensors} has {len(paths)} steps, of which {WARM_UP_STEPS} warm up")
    seconds, tokens, loss_tokens, operations, loss = 0.0, 0, 0, 0.0, float("nan")
    for number, path in enumerate(paths):
        batches = torch.load(path, weights_only=True)
        lengths, num_loss = measure_documents(batches), count_loss_tokens(batches)
        micro_batches = [to_micro_batch(each) for each in (batches if rung.is_packed else pad_documents(batches))]
        started = _now(device)
        loss = _take_step(student, optimizer, micro_batches, num_loss, device)
        if number >= WARM_UP_STEPS:
            seconds += _now(device) - started
            tokens, loss_tokens = tokens + int(lengths.sum()), loss_tokens + num_loss
            operations += flops.of_step(lengths, num_loss)
    peak = peak_flops(device, config.dtype)
    result = {
        "tokens_per_s": tokens / seconds,
        "loss_tokens_per_s": loss_tokens / seconds,
        "mfu": None if peak is None else operations / seconds / peak,
        "peak_gib": peak_memory_mib(device) / 2**10,
        "loss": loss,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    }
    print(json.dumps(result))
    return 0


def _build_student(climb: Climb, rung: Rung, config: TrainingConfig, world: World) -> tuple[torch.nn.Module, Any]:
    with torch.device(world.device):
        model = build_random_model(SHAPES[climb.shape], climb.sequence_length)
    if rung.is_packed and world.device.type == "cuda":
        model.set_attn_implementation(Attention.FLEX)  # as training.attention=auto does: it skips other documents
    if rung.is_checkpointed:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    kernel = LossKernel(rung.loss_kernel)
    student = StudentWithLoss(model, kernel=kernel) if rung.has_linear_loss else WithLogits(model)
    shard_model(student, find_decoder_layers(model), config, world)
    gc.collect()
    if world.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(world.device)
    return student.train(), model


def _take_step(
    student: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    micro_batches: list[MicroBatch],
    num_loss: int,
    device: torch.device,
) -> float:
    """Take the step as `training.loop` does; return its mean loss."""
    loss_sum = torch.zeros((), device=device)
    for micro_batch in micro_batches:
        loss = student(*micro_batch.to(device).tensors())
        (loss / num_loss).backward()
        loss_sum += loss.detach()
    torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss_sum.item() / num_loss


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic()


def to_micro_batch(batch: dict[str, torch.Tensor]) -> MicroBatch:
    """Return the tensors of a file as the student takes them."""
    labels = batch["labels"].flatten()
    loss_index = torch.nonzero(labels != NO_LOSS).flatten()
    return MicroBatch(batch["input_ids"], batch["position_ids"], loss_index, labels[loss_index])


def split_documents(batch: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """Return the documents of packed sequences; one without loss tokens is padding and left out."""
    documents = []
    for row in range(len(batch["input_ids"])):
        positions = batch["position_ids"][row]
        starts = [*torch.nonzero(positions == 0).flatten().tolist(), len(positions)]
        for start, end in pairwise(starts):
            document = {name: tensor[row, start:end] for name, tensor in batch.items()}
            if bool((document["labels"] != NO_LOSS).any()):
                documents.append(document)
    return documents


def pad_documents(batches: list[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
    """Return the same documents a row each, in their order; a micro-batch has at most the room of a packed one."""
    room = batches[0]["input_ids"].numel()
    groups: list[list[dict[str, torch.Tensor]]] = []
    longest = 0
    for document in (document for batch in batches for document in split_documents(batch)):
        longest = max(longest, len(document["input_ids"]))
        if not groups or longest * (len(groups[-1]) + 1) > room:
            groups.append([])
            longest = len(document["input_ids"])
        groups[-1].append(document)
    return [_pad_group(group) for group in groups]


def _pad_group(group: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    longest = max(len(document["input_ids"]) for document in group)
    return {
        "input_ids": torch.stack([_pad(document["input_ids"], longest, 0) for document in group]),
        "position_ids": torch.arange(longest).repeat(len(group), 1),
        "labels": torch.stack([_pad(document["labels"], longest, NO_LOSS) for document in group]),
    }


def measure_documents(batches: list[dict[str, torch.Tensor]]) -> np.ndarray:
    """Return the lengths of all documents."""
    return np.array([len(each["input_ids"]) for batch in batches for each in split_documents(batch)], np.int32)


def count_loss_tokens(batches: list[dict[str, torch.Tensor]]) -> int:
    """Return the number of labels."""
    return sum(int((batch["labels"] != NO_LOSS).sum()) for batch in batches)


def _pad(tensor: torch.Tensor, length: int, value: int) -> torch.Tensor:
    return torch.nn.functional.pad(tensor, (0, length - len(tensor)), value=value)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
