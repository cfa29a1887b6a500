"""The loop as a user of one process sees it: files, losses, resume, refusals."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from configs.errors import UserError
from configs.schema import OptimizerConfig
from tests.integration.ranks import FINISHED, run_ranks
from tests.unit.training.tiny import make_job
from training.job import JobDevice, StepMetrics, TrainJob, TrainResult, Transfer
from training.loop import train
from training.parallel import joined_world

pytestmark = pytest.mark.integration


class Killed(Exception):
    """Stands for a process that ends in the middle of a run."""


def ignore(_: StepMetrics) -> None:
    pass


def run(job: TrainJob, on_step: Callable[[StepMetrics], None] = ignore) -> TrainResult:
    with joined_world(JobDevice.CPU) as world:
        return train(job, on_step, world)


def run_until(job: TrainJob, step: int) -> None:
    def kill(metrics: StepMetrics) -> None:
        if metrics.step == step:
            raise Killed

    with pytest.raises(Killed):
        run(job, kill)


def metrics_of(job: TrainJob) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(job.output_dir, "metrics.jsonl").read_text().splitlines()]


def curve(job: TrainJob) -> list[tuple[int, float, float, float | None]]:
    keys = ("step", "loss", "grad_norm", "evaluation_loss")
    return [tuple(line[key] for key in keys) for line in metrics_of(job)]  # type: ignore[misc]


def weights_of(result: TrainResult) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = AutoModelForCausalLM.from_pretrained(result.hf_dir).state_dict()
    return weights


def with_training(job: TrainJob, **updates: Any) -> TrainJob:
    return replace(job, training=job.training.model_copy(update=updates))


def test_train_writes_metrics_result_and_a_model_that_loads(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    seen: list[StepMetrics] = []
    result = run(job, seen.append)
    lines = metrics_of(job)
    assert [line["step"] for line in lines] == list(range(1, 13)) == [metrics.step for metrics in seen]
    assert lines[-1]["loss"] < 0.9 * lines[0]["loss"]
    assert result.num_steps == 12
    assert result.loss_tokens == lines[-1]["loss_tokens"]
    assert result.final_loss == lines[-1]["loss"]
    assert result.evaluation_loss == lines[-1]["evaluation_loss"]
    assert [line["step"] for line in lines if line["evaluation_loss"] is not None] == [6, 12]
    assert result.rows + result.evaluation_rows == 200
    model = AutoModelForCausalLM.from_pretrained(result.hf_dir)
    tokenizer = AutoTokenizer.from_pretrained(result.hf_dir)
    assert (model.dtype, model.config.architectures) == (torch.float32, ["LlamaForCausalLM"])
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == 2
    assert tokenizer.apply_chat_template([{"role": "user", "content": "1+2="}], tokenize=False) == "<bos>1+2="


def test_train_exported_weights_have_the_evaluation_loss_that_was_reported(tmp_path: Path) -> None:
    job = make_job(tmp_path, model_type="qwen3")
    result = run(job)
    again = make_job(tmp_path, init=None, model=result.hf_dir, output_dir=str(tmp_path / "again"), max_steps=1)
    again = with_training(again, optimizer=OptimizerConfig(learning_rate=1e-12, weight_decay=0.0))
    assert run(again).evaluation_loss == pytest.approx(result.evaluation_loss, abs=1e-5)


@pytest.mark.parametrize("killed_at", [4, 7, 10])
def test_train_killed_and_run_again_repeats_the_undisturbed_run_bit_by_bit(tmp_path: Path, killed_at: int) -> None:
    # GPT-2 has dropout, so this also shows that its randomness is resumed.
    gpt2 = {"model_type": "gpt2", "arguments": {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}}
    whole = make_job(tmp_path / "whole", init=gpt2)
    halves = make_job(tmp_path / "halves", init=gpt2)
    expected = weights_of(run(whole))
    run_until(halves, killed_at)
    found = weights_of(run(halves))
    assert curve(halves) == curve(whole)
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


def test_train_resumed_in_a_later_epoch_repeats_the_undisturbed_run(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"num_rows": 40, "max_steps": None, "epochs": 4, "checkpoint_every": 3}
    whole, halves = make_job(tmp_path / "whole", **settings), make_job(tmp_path / "halves", **settings)
    run(whole)
    assert [line["epoch"] for line in metrics_of(whole)][-1] == 3
    run_until(halves, 5)
    run(halves)
    assert curve(halves) == curve(whole)


def test_train_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    result = run(job)
    expected = curve(job)
    Path(job.output_dir, "result.json").unlink()
    newest = Path(job.output_dir, "checkpoints", "step-00000012", "__0_0.distcp")
    damaged = bytearray(newest.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    newest.write_bytes(damaged)
    steps: list[int] = []
    again = run(job, lambda metrics: steps.append(metrics.step))
    assert steps == [11, 12]
    assert (again.final_loss, curve(job)) == (result.final_loss, expected)


@pytest.mark.parametrize("content", ["", "[]", '{"files": {}}', '{"files": {}, "progress": {"steps": 1}}'])
def test_train_checkpoint_whose_manifest_is_damaged_falls_back_to_the_one_before(tmp_path: Path, content: str) -> None:
    job = make_job(tmp_path)
    result = run(job)
    Path(job.output_dir, "result.json").unlink()
    Path(job.output_dir, "checkpoints", "step-00000012", "complete.json").write_text(content)
    steps: list[int] = []
    assert run(job, lambda metrics: steps.append(metrics.step)).final_loss == result.final_loss
    assert steps == [11, 12]


def test_train_damaged_checkpoint_is_none_of_those_that_are_kept(tmp_path: Path) -> None:
    job = make_job(tmp_path, keep_checkpoints=1)
    run_until(job, 7)
    [newest] = Path(job.output_dir, "checkpoints").iterdir()
    next(newest.glob("*.distcp")).write_bytes(b"")
    newest.rename(newest.with_name("step-00000011"))  # ahead of what is written from now on
    run_until(job, 7)
    assert [path.name for path in Path(job.output_dir, "checkpoints").iterdir()] == ["step-00000005"]


def test_train_checkpoint_without_manifest_does_not_count(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    run_until(job, 7)
    Path(job.output_dir, "checkpoints", "step-00000005", "complete.json").unlink()
    steps: list[int] = []
    run(job, lambda metrics: steps.append(metrics.step))
    assert steps[0] == 1


def test_train_keeps_the_newest_checkpoints_only(tmp_path: Path) -> None:
    job = make_job(tmp_path, checkpoint_every=3, keep_checkpoints=2)
    run(job)
    names = sorted(path.name for path in Path(job.output_dir, "checkpoints").iterdir())
    assert names == ["step-00000009", "step-00000012"]


def test_train_finished_job_returns_at_once_without_its_inputs(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    result = run(job)
    for file in job.files:
        Path(file.path).unlink()
    assert run(with_training(job, num_workers=2, log_every=7)) == result


def test_train_export_that_was_interrupted_is_done_again(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    result = run(job)
    expected = weights_of(result)
    Path(job.output_dir, "result.json").unlink()
    shutil.rmtree(result.hf_dir)
    again = run(job)
    assert replace(again, seconds=0.0) == replace(result, seconds=0.0)
    assert all(torch.equal(weights_of(again)[name], weight) for name, weight in expected.items())


def test_train_directory_of_another_job_is_refused_with_the_differing_keys(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    run_until(job, 1)
    other = with_training(job, seed=5, optimizer=OptimizerConfig(learning_rate=2e-2))
    with pytest.raises(UserError, match=r"differs in training\.optimizer\.learning_rate, training\.seed;"):
        run(other)


def test_train_moved_directory_goes_on(tmp_path: Path) -> None:
    job = make_job(tmp_path / "before")
    run_until(job, 7)
    (tmp_path / "before").rename(tmp_path / "after")
    moved = replace(
        job,
        files=tuple(replace(file, path=file.path.replace("before", "after")) for file in job.files),
        output_dir=job.output_dir.replace("before", "after"),
    )
    shutil.copytree(tmp_path / "after" / "tokenizer", job.tokenizer)
    steps: list[int] = []
    run(moved, lambda metrics: steps.append(metrics.step))
    assert steps[0] == 6


def test_train_gradient_that_is_not_finite_names_the_step(tmp_path: Path) -> None:
    job = with_training(
        make_job(tmp_path), optimizer=OptimizerConfig(learning_rate=1e38, max_grad_norm=1e38, warmup_ratio=0.0)
    )
    with pytest.raises(UserError, match=r"the gradient of step [2-9] is not finite \(nan\)"):
        run(job)


def test_train_bfloat16_learns_and_exports_bfloat16(tmp_path: Path) -> None:
    job = make_job(tmp_path, dtype="bfloat16")
    result = run(job)
    losses = [line["loss"] for line in metrics_of(job)]
    assert losses[-1] < 0.9 * losses[0]
    assert AutoModelForCausalLM.from_pretrained(result.hf_dir).dtype is torch.bfloat16


@pytest.mark.parametrize("setting", [{"micro_batch_sequences": 1}, {"activation_checkpointing": "full"}])
def test_train_setting_that_only_saves_memory_keeps_the_losses(tmp_path: Path, setting: dict[str, Any]) -> None:
    reference, other = make_job(tmp_path / "a"), make_job(tmp_path / "b", **setting)
    run(reference)
    run(other)
    ours, theirs = ([line["loss"] for line in metrics_of(job)] for job in (other, reference))
    assert ours == pytest.approx(theirs, rel=1e-4)


def test_train_output_on_an_object_store_resumes_and_exports(tmp_path: Path) -> None:
    fs = fsspec.filesystem("memory")
    job = replace(make_job(tmp_path), output_dir="memory://bucket/student")
    try:
        run_until(job, 7)
        steps: list[int] = []
        result = run(job, lambda metrics: steps.append(metrics.step))
        assert steps[0] == 6
        lines = fs.cat_file("/bucket/student/metrics.jsonl").decode().splitlines()
        assert [json.loads(line)["step"] for line in lines] == list(range(1, 13))
        fs.get("/bucket/student/hf", str(tmp_path / "hf"), recursive=True)
        assert math.isfinite(result.final_loss)
        assert AutoModelForCausalLM.from_pretrained(tmp_path / "hf").config.vocab_size == 16
    finally:
        fs.rm("/bucket", recursive=True)


def test_train_text_that_two_ranks_tokenise_has_the_losses_of_the_token_ids_in_one(tmp_path: Path) -> None:
    ids = make_job(tmp_path / "ids", max_steps=4)
    text = make_job(tmp_path / "text", max_steps=4, transfer=Transfer.TEXT)
    run(ids)
    assert run_ranks(text, 2) == [FINISHED, FINISHED]
    theirs, ours = ([line["loss"] for line in metrics_of(job)] for job in (ids, text))
    assert ours == pytest.approx(theirs, abs=1e-5)
    assert len(list(Path(text.output_dir, "tokenised").glob("part-*.parquet"))) == len(text.files) == 2
