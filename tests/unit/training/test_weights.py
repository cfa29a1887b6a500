"""Ranks without weights: a copy has the student's modules, and what rank 0 hands out makes it the same."""

import pickle
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from tests.unit.training.tiny import LLAMA, make_job
from training.loss import StudentWithLoss
from training.model import load_model, load_tokenizer
from training.parallel import World
from training.weights import fill_weights, without_weights

pytestmark = pytest.mark.unit

MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "decoder_sparse_step": 1}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "qwen3": {**LLAMA, "tie_word_embeddings": True},
    "gemma2": {**LLAMA, "head_dim": 8},
    "gemma3_text": {**LLAMA, "head_dim": 8},
    "gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64},
    "qwen3_moe": {**LLAMA, **MIXTURE},
}
CPU = torch.device("cpu")


@pytest.fixture
def group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def loss_of(student: StudentWithLoss) -> float:
    ids, positions = torch.tensor([[1, 5, 4, 2]]), torch.tensor([[0, 1, 2, 3]])
    loss: torch.Tensor = student.eval()(ids, positions, torch.tensor([1, 2]), torch.tensor([4, 2]))
    return loss.item()


def num_places(model: torch.nn.Module) -> tuple[int, int]:
    """Return how many parameters there are, and at how many places."""
    return len(list(model.parameters())), len(list(model.named_parameters(remove_duplicate=False)))


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("model_type", list(ARCHITECTURES))
def test_fill_weights_makes_what_travelled_without_them_the_student_bit_by_bit(tmp_path: Path, model_type: str) -> None:
    job = make_job(tmp_path, num_rows=2, init={"model_type": model_type, "arguments": ARCHITECTURES[model_type]})
    whole = StudentWithLoss(load_model(job, load_tokenizer(job.tokenizer)))
    whole.model.lm_head.requires_grad_(model_type != "gpt2")  # frozen weights are handed out as well, and stay frozen
    other = pickle.loads(pickle.dumps(without_weights(whole)))
    assert all(tensor.is_meta for tensor in chain(other.parameters(), other.buffers()))
    fully_shard(other, mesh=init_device_mesh("cpu", (1,)))
    fill_weights(other, whole, World(0, 1, CPU))
    assert loss_of(other) == loss_of(whole)
    assert num_places(other) == num_places(whole)
    assert [p.requires_grad for p in other.parameters()] == [p.requires_grad for p in whole.parameters()]
