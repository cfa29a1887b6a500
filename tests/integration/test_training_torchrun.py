"""The loop under torchrun: two gloo ranks with FSDP2 learn what one process learns, and resume at any size."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from configs.schema import OptimizerConfig
from tests.unit.training.tiny import LLAMA, make_job
from training.job import JobDevice, TrainJob
from training.loop import train
from training.parallel import joined_world

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
# Above the size from which a decoder layer is its own FSDP2 group, with tied embeddings in the root's group.
WIDE = {"model_type": "llama", "arguments": {**LLAMA, "hidden_size": 320, "intermediate_size": 1024}}
TIED = {"model_type": "llama", "arguments": {**LLAMA, "tie_word_embeddings": True}}


def start_two_ranks(job: TrainJob, path: Path) -> subprocess.CompletedProcess[str]:
    path.write_text(job.to_json())
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "training", str(path)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def run_alone(job: TrainJob) -> list[int]:
    """Run the job in this process and return the steps it took."""
    steps: list[int] = []
    with joined_world(JobDevice.CPU) as world:
        train(job, lambda metrics: steps.append(metrics.step), world)
    return steps


def losses_of(job: TrainJob) -> list[float]:
    lines = Path(job.output_dir, "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, len(lines) + 1))
    return [json.loads(line)["loss"] for line in lines]


def make_unfinished(job: TrainJob, last_step: int) -> None:
    """Put the output directory back to how a kill after ``last_step`` leaves it."""
    out = Path(job.output_dir)
    (out / "result.json").unlink()
    for checkpoint in (out / "checkpoints").iterdir():
        if int(checkpoint.name.removeprefix("step-")) > last_step:
            (checkpoint / "complete.json").unlink()


@pytest.mark.parametrize("init", [WIDE, TIED], ids=["layer groups", "tied in the root group"])
def test_train_two_ranks_and_resumed_by_one_has_the_losses_of_one_process(
    tmp_path: Path, init: dict[str, object]
) -> None:
    # Nine packs a step do not divide by two ranks, so an empty pack fills up. The rate is one at which the wide model
    # learns steadily: where it jumps about, rounding grows from step to step.
    settings: dict[str, object] = {
        "init": init,
        "batch_sequences": 9,
        "keep_checkpoints": 9,
        "optimizer": OptimizerConfig(learning_rate=1e-3),
    }
    alone = make_job(tmp_path / "alone", **settings)
    shared = make_job(tmp_path / "shared", **settings)
    run_alone(alone)
    finished = start_two_ranks(shared, tmp_path / "shared.json")
    assert finished.returncode == 0, finished.stderr
    assert losses_of(shared) == pytest.approx(losses_of(alone), abs=1e-4)
    together = losses_of(shared)

    make_unfinished(shared, last_step=5)
    assert run_alone(shared)[0] == 6
    assert losses_of(shared) == pytest.approx(together, abs=1e-5)
    model = AutoModelForCausalLM.from_pretrained(Path(shared.output_dir, "hf"))
    assert type(model).__name__ == "LlamaForCausalLM"


def test_train_one_process_resumed_by_two_ranks_keeps_the_losses(tmp_path: Path) -> None:
    job = make_job(tmp_path, keep_checkpoints=9)
    run_alone(job)
    alone = losses_of(job)
    make_unfinished(job, last_step=10)
    resumed = start_two_ranks(job, tmp_path / "job.json")
    assert "at step 10 of 12 with 2 workers" in resumed.stderr
    assert losses_of(job) == pytest.approx(alone, abs=1e-5)


def test_train_mistake_seen_by_one_rank_ends_all_with_its_sentence(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    Path(job.files[1].path).unlink()  # the second file is read by the second rank
    ended = start_two_ranks(job, tmp_path / "job.json")
    assert ended.returncode != 0
    assert f"error: the data file {job.files[1].path!r} does not exist" in ended.stderr
