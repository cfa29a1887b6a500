"""Writes the finished student as a Hugging Face checkpoint that transformers and vLLM load."""

from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import PreTrainedTokenizerBase

from configs.schema import TrainingDtype
from training import storage
from training.job import TrainJob
from training.loss import StudentWithLoss
from training.parallel import World

# Hugging Face's usual shard size: small enough to download in parts.
_MAX_SHARD_SIZE = "5GB"


def export_student(student: StudentWithLoss, tokenizer: PreTrainedTokenizerBase, job: TrainJob, world: World) -> str:
    """Write configuration, safetensors, tokenizer and generation configuration to ``<output_dir>/hf``; return it.

    Weights are stored in the dtype of training. Every rank calls it, rank 0 gathers and writes.
    """
    uri = storage.join(job.output_dir, "hf")
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_model_state_dict(student.model, options=options)
    if world.rank == 0:
        with storage.replaced_directory(uri) as local:
            _save(student, state, tokenizer, job, str(local))
    world.barrier()
    return uri


def _save(
    student: StudentWithLoss, state: dict[str, Any], tokenizer: PreTrainedTokenizerBase, job: TrainJob, path: str
) -> None:
    dtype = torch.bfloat16 if job.training.dtype is TrainingDtype.BFLOAT16 else torch.float32
    state = {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}
    for name, source in getattr(student.model, "all_tied_weights_keys", {}).items():
        state[name] = state[source]  # gathered apart; transformers stores a tied weight once when it is one tensor
    student.model.save_pretrained(path, state_dict=state, max_shard_size=_MAX_SHARD_SIZE)
    student.model.config.dtype = dtype  # save_pretrained wrote that of the float32 master weights
    student.model.config.save_pretrained(path)
    tokenizer.save_pretrained(path)
    for file in Path(path).iterdir():
        file.chmod(0o644)  # safetensors writes 0600, and an engine may run as another user
