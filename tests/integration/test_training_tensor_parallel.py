"""Tensor parallelism: ranks that share each layer learn what one process learns, and leave what any number can read."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from configs.schema import OptimizerConfig
from tests.integration.ranks import FINISHED, curve_of, run_ranks
from tests.unit.training.tiny import LLAMA, make_job
from training.job import JobDevice, TrainJob
from training.loop import train
from training.parallel import joined_world

pytestmark = pytest.mark.integration

# A group's halves of 19 do not divide between two groups.
ODD_LLAMA = {"model_type": "llama", "arguments": {**LLAMA, "intermediate_size": 38}}
# Norms of each head, biases, and embeddings that are the output matrix.
TIED_QWEN3 = {
    "model_type": "qwen3",
    "arguments": {**LLAMA, "head_dim": 8, "attention_bias": True, "tie_word_embeddings": True},
}


def make(root: Path, init: dict[str, Any], **changed: Any) -> TrainJob:
    settings = {"max_steps": 6, "checkpoint_every": 3, "optimizer": OptimizerConfig(learning_rate=1e-3)}
    return make_job(root, init=init, **settings | changed)


def run_alone(job: TrainJob) -> list[int]:
    """Run the job in this process and return the steps it took."""
    steps: list[int] = []
    with joined_world(JobDevice.CPU) as world:
        train(job, lambda metrics: steps.append(metrics.step), world)
    return steps


def assert_alike(job: TrainJob, other: TrainJob) -> None:
    """Compare losses, gradient norms and exported weights."""
    assert [line[1:] for line in curve_of(job)] == [pytest.approx(line[1:], abs=1e-4) for line in curve_of(other)]
    ours, theirs = (load_file(Path(each.output_dir, "hf", "model.safetensors")) for each in (job, other))
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, rtol=0, atol=1e-4)


def test_train_two_groups_of_two_learn_what_one_process_learns(tmp_path: Path) -> None:
    alone = make(tmp_path / "alone", ODD_LLAMA)
    run_alone(alone)
    shared = make(tmp_path / "shared", ODD_LLAMA, tensor_parallel_size=2)
    assert run_ranks(shared, 4) == [FINISHED] * 4
    assert_alike(shared, alone)


def test_train_a_group_learns_what_one_process_learns_which_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    alone = make(tmp_path / "alone", TIED_QWEN3)
    run_alone(alone)
    shared = make(tmp_path / "shared", TIED_QWEN3, tensor_parallel_size=2)
    assert run_ranks(shared, 2) == [FINISHED] * 2
    assert_alike(shared, alone)

    Path(shared.output_dir, "result.json").unlink()
    Path(shared.output_dir, "checkpoints", "step-00000006", "complete.json").unlink()
    assert run_alone(make(tmp_path / "shared", TIED_QWEN3)) == [4, 5, 6]
    assert_alike(shared, alone)
