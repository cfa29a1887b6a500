"""Hybrid sharding: several copies of the student, each spread over some of the workers, learn what one process does."""

from pathlib import Path

import pytest

from configs.schema import OptimizerConfig
from tests.integration.ranks import FINISHED, MISTAKE, curve_of, run_ranks
from tests.unit.training.tiny import LLAMA, make_job
from training.job import JobDevice
from training.loop import train
from training.parallel import joined_world

pytestmark = pytest.mark.integration

# Above the size from which a decoder layer is its own FSDP2 group.
WIDE = {"model_type": "llama", "arguments": {**LLAMA, "hidden_size": 320, "intermediate_size": 1024}}


def test_train_two_copies_over_two_ranks_each_have_the_losses_of_one_process(tmp_path: Path) -> None:
    settings = {"init": WIDE, "max_steps": 4, "optimizer": OptimizerConfig(learning_rate=1e-3)}
    alone = make_job(tmp_path / "alone", **settings)
    shared = make_job(tmp_path / "shared", shard_size=2, **settings)
    with joined_world(JobDevice.CPU) as world:
        train(alone, lambda _: None, world)
    assert run_ranks(shared, 4) == [FINISHED] * 4
    ours, theirs = ([line[1] for line in curve_of(job)] for job in (shared, alone))
    assert ours == pytest.approx(theirs, abs=1e-5)
    assert Path(shared.output_dir, "hf", "model.safetensors").is_file()


def test_train_shard_size_that_does_not_divide_the_workers_is_a_mistake(tmp_path: Path) -> None:
    assert run_ranks(make_job(tmp_path, shard_size=3), 2) == [MISTAKE, MISTAKE]
