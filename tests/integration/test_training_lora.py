"""LoRA students: adapters alone are trained and kept, and the export holds them merged."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from configs.errors import UserError
from configs.schema import LoraConfig, OptimizerConfig
from tests.integration.ranks import FINISHED, run_ranks
from tests.unit.training.tiny import LLAMA, make_job
from training.job import JobDevice, StepMetrics, TrainJob, TrainResult
from training.loop import train
from training.lora import add_adapters
from training.model import build_model, load_tokenizer
from training.parallel import joined_world

pytestmark = pytest.mark.integration

GPT2 = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}


class Killed(Exception):
    """Stands for a process that ends in the middle of a run."""


def lora_job(root: Path, base: Path, **changed: Any) -> TrainJob:
    lora = LoraConfig(r=4, alpha=8.0, **changed).model_dump(mode="json")
    return make_job(root, init=None, model=str(base), lora=lora, optimizer=OptimizerConfig(learning_rate=5e-2))


def save_base(root: Path, model_type: str, arguments: dict[str, Any]) -> Path:
    job = make_job(root, num_rows=2, init={"model_type": model_type, "arguments": arguments})
    build_model(job, load_tokenizer(job.tokenizer)).save_pretrained(root / "base")
    return root / "base"


def run(job: TrainJob, kill_at: int | None = None) -> TrainResult:
    def on_step(metrics: StepMetrics) -> None:
        if metrics.step == kill_at:
            raise Killed

    with joined_world(JobDevice.CPU) as world:
        return train(job, on_step, world)


def losses_of(job: TrainJob) -> list[float]:
    return [json.loads(line)["loss"] for line in Path(job.output_dir, "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("model_type", "arguments"), [("llama", LLAMA), ("gpt2", GPT2)])
def test_train_lora_exports_the_merged_student_and_adapters_that_make_the_same(
    tmp_path: Path, model_type: str, arguments: dict[str, Any]
) -> None:
    base = save_base(tmp_path / "base", model_type, arguments)
    job = lora_job(tmp_path / "lora", base)
    result = run(job)
    losses = losses_of(job)
    assert losses[-1] < losses[0] - 0.03
    ids = torch.tensor([[1, 3, 4, 5]])
    merged, start = (AutoModelForCausalLM.from_pretrained(path).eval() for path in (result.hf_dir, base))
    adapted = PeftModel.from_pretrained(start, str(Path(job.output_dir, "adapter"))).eval()
    with torch.no_grad():
        torch.testing.assert_close(adapted(ids).logits, merged(ids).logits, rtol=1e-4, atol=1e-4)
        with adapted.disable_adapter():
            assert (adapted(ids).logits - merged(ids).logits).abs().max() > 0.01


def test_train_lora_killed_and_run_again_repeats_the_undisturbed_run_from_checkpoints_of_adapters(
    tmp_path: Path,
) -> None:
    base = save_base(tmp_path / "base", "llama", LLAMA | {"hidden_size": 64, "intermediate_size": 256})
    whole, halves = lora_job(tmp_path / "whole", base), lora_job(tmp_path / "halves", base)
    run(whole)
    with pytest.raises(Killed):
        run(halves, kill_at=7)
    run(halves)
    assert losses_of(halves) == losses_of(whole)
    checkpoint = sum(f.stat().st_size for f in Path(whole.output_dir, "checkpoints", "step-00000012").iterdir())
    with safe_open(base / "model.safetensors", "pt") as weights:
        size = sum(weights.get_tensor(name).nbytes for name in weights.keys())  # noqa: SIM118
    assert checkpoint < size


def test_train_lora_two_ranks_have_the_losses_of_one(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", "llama", LLAMA)
    alone, shared = lora_job(tmp_path / "alone", base), lora_job(tmp_path / "shared", base)
    result = run(alone)
    assert run_ranks(shared, 2) == [FINISHED, FINISHED]
    assert losses_of(shared) == pytest.approx(losses_of(alone), abs=1e-5)
    ours = AutoModelForCausalLM.from_pretrained(Path(shared.output_dir, "hf")).state_dict()
    theirs = AutoModelForCausalLM.from_pretrained(result.hf_dir).state_dict()
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_train_lora_in_4_bits_exports_the_original_with_its_adapters_at_any_number_of_ranks(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="the extra qlora is not installed")
    base = save_base(tmp_path / "base", "llama", LLAMA | {"hidden_size": 64, "intermediate_size": 128})
    alone, shared = (lora_job(tmp_path / name, base, quantization="nf4") for name in ("alone", "shared"))
    with pytest.raises(Killed):
        run(alone, kill_at=7)
    result = run(alone)
    losses = losses_of(alone)
    assert losses[-1] < losses[0] - 0.03
    assert run_ranks(shared, 2) == [FINISHED, FINISHED]
    assert losses_of(shared) == pytest.approx(losses, abs=1e-5)
    merged, start = (AutoModelForCausalLM.from_pretrained(path).eval() for path in (result.hf_dir, base))
    other = AutoModelForCausalLM.from_pretrained(Path(shared.output_dir, "hf"))
    torch.testing.assert_close(other.state_dict(), merged.state_dict(), rtol=1e-4, atol=1e-4)
    adapted = PeftModel.from_pretrained(start, str(Path(alone.output_dir, "adapter"))).eval()
    ids = torch.tensor([[1, 3, 4, 5]])
    with torch.no_grad():
        torch.testing.assert_close(adapted(ids).logits, merged(ids).logits, rtol=1e-4, atol=1e-4)


def test_add_adapters_to_matrices_that_are_not_there_is_refused(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", "llama", LLAMA)
    job = lora_job(tmp_path / "lora", base, target_modules=("query",))
    model = build_model(job, load_tokenizer(job.tokenizer))
    with pytest.raises(UserError, match=r"target_modules \['query'\] names no matrix of this student"):
        add_adapters(model, job)
