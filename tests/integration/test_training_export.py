"""The exported student: what save_pretrained of the whole would give, streamed shard by shard."""

import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.integration.ranks import FINISHED, run_ranks
from tests.unit.training.tiny import LLAMA, make_job
from training.export import export_student
from training.job import TrainJob
from training.loop import train
from training.loss import StudentWithLoss
from training.model import build_model, load_tokenizer
from training.parallel import World

pytestmark = pytest.mark.integration

ALONE = World(0, 1, torch.device("cpu"))
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {"tie_word_embeddings": True},
    "gemma3_text": {"head_dim": 8},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "decoder_sparse_step": 1},
}


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that are made inside it and still there, and the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: weakref.WeakValueDictionary[int, torch.UntypedStorage] = weakref.WeakValueDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu":
                storage = tensor.untyped_storage()
                if storage._cdata not in known and self._seen.get(storage._cdata) is not storage:
                    self._seen[storage._cdata] = storage
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._free, storage.nbytes())
        return result

    def _free(self, num_bytes: int) -> None:
        self.now -= num_bytes


def build_student(job: TrainJob) -> StudentWithLoss:
    return StudentWithLoss(build_model(job, load_tokenizer(job.tokenizer)))


def export(student: StudentWithLoss, job: TrainJob, max_shard_bytes: int) -> Path:
    tokenizer = load_tokenizer(job.tokenizer)
    return Path(export_student(student, tokenizer, job, ALONE, max_shard_bytes))


def load_shards(directory: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in directory.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("model_type", list(ARCHITECTURES))
def test_export_in_shards_equals_save_pretrained_of_the_whole_bit_by_bit(tmp_path: Path, model_type: str) -> None:
    init = {"model_type": model_type, "arguments": {**LLAMA, **ARCHITECTURES[model_type]}}
    job = make_job(tmp_path, num_rows=2, init=init)
    student = build_student(job)
    exported = export(student, job, max_shard_bytes=8_000)
    student.model.save_pretrained(tmp_path / "whole")
    expected, found = load_shards(tmp_path / "whole"), load_shards(exported)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    index = json.loads((exported / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == found.keys()
    assert {*index["weight_map"].values()} == {file.name for file in exported.glob("*.safetensors")}
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in found.values())
    loaded = AutoModelForCausalLM.from_pretrained(exported)
    assert isinstance(loaded, PreTrainedModel)
    mine, theirs = loaded.state_dict(), student.model.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], tensor) for name, tensor in theirs.items())


@pytest.mark.parametrize(
    ("settings", "written"),
    [({"temperature": 0.7}, {"temperature": 0.7, "do_sample": True}), ({"early_stopping": True, "num_beams": 1}, None)],
)
def test_export_of_generation_settings_that_transformers_refuses_to_write(
    tmp_path: Path, settings: dict[str, object], written: dict[str, object] | None
) -> None:
    job = make_job(tmp_path, num_rows=2)
    student = build_student(job)
    student.model.generation_config.update(**settings)
    file = export(student, job, max_shard_bytes=8_000) / "generation_config.json"
    assert file.exists() == (written is not None)
    assert written is None or written.items() <= json.loads(file.read_text()).items()


def test_export_holds_a_shard_and_a_layer_however_large_the_model_is(tmp_path: Path) -> None:
    sizes = {}
    for num_layers in (4, 16):
        init = {"model_type": "llama", "arguments": {**LLAMA, "num_hidden_layers": num_layers}}
        job = make_job(tmp_path / str(num_layers), num_rows=2, init=init, dtype="bfloat16")
        student = build_student(job)
        layer = 2 * sum(parameter.numel() for parameter in student.model.model.layers[0].parameters())
        with LiveBytes() as live:
            exported = export(student, job, max_shard_bytes=2 * layer)
        stored = sum(tensor.nbytes for tensor in load_shards(exported).values())
        assert stored > num_layers * layer
        sizes[num_layers] = live.peak / layer
    assert sizes[16] == sizes[4] < 4.5  # two layers of a shard, one that is gathered, and what is cast or copied


def test_export_of_two_ranks_equals_that_of_one(tmp_path: Path) -> None:
    mixture = {"model_type": "mixtral", "arguments": {**LLAMA, **ARCHITECTURES["mixtral"]}}
    job = make_job(tmp_path, max_steps=1, init=mixture)
    assert run_ranks(job, 2) == [FINISHED, FINISHED]
    shared = load_shards(Path(job.output_dir, "hf"))
    Path(job.output_dir, "result.json").unlink()
    train(job, lambda _: None, ALONE)  # resumes after the last step: only the export is left
    alone = load_shards(Path(job.output_dir, "hf"))
    assert shared.keys() == alone.keys()
    assert all(torch.equal(shared[name], tensor) for name, tensor in alone.items())
