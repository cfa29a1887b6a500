"""Writes the finished student as a Hugging Face checkpoint that transformers and vLLM load.

Weights are streamed: gathered one tensor at a time and written shard by shard, so that no host ever holds more than a
shard and the tensors of one layer, whatever the size of the model.
"""

import json
import logging
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.distributed.tensor import DTensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.core_model_loading import revert_weight_conversion
from transformers.dynamic_module_utils import custom_object_save

from configs.schema import TrainingDtype
from training import storage
from training.job import TrainJob
from training.loss import StudentWithLoss
from training.model import find_decoder_layers
from training.parallel import World

logger = logging.getLogger(__name__)

# Hugging Face's usual shard size: small enough to download in parts.
_MAX_SHARD_BYTES = 5 * 10**9

_WEIGHTS = "model{suffix}.safetensors"
_INDEX = "model.safetensors.index.json"

_Tensors = dict[str, torch.Tensor]


def export_student(
    student: StudentWithLoss,
    tokenizer: PreTrainedTokenizerBase,
    job: TrainJob,
    world: World,
    max_shard_bytes: int = _MAX_SHARD_BYTES,
) -> str:
    """Write configuration, safetensors, tokenizer and generation configuration to ``<output_dir>/hf``; return it.

    Weights are stored in the dtype of training, tied ones once, under the names of the architecture's published
    checkpoints. Every rank calls it and takes part in the gathering, rank 0 writes.
    """
    uri = storage.join(job.output_dir, "hf")
    dtype = torch.bfloat16 if job.training.dtype is TrainingDtype.BFLOAT16 else torch.float32
    weights = _iterate_weights(student.model, dtype)
    if world.rank == 0:
        with storage.replaced_directory(uri) as local:
            _save_description(student.model, tokenizer, dtype, local)
            for path in _write_shards(student.model, weights, dtype, local, max_shard_bytes):
                path.chmod(0o644)  # safetensors writes 0600, and an engine may run as another user
                storage.hand_over(path, uri)
    else:
        for _ in weights:
            pass
    world.barrier()
    return uri


def _write_shards(
    model: PreTrainedModel,
    weights: Iterator[tuple[str, torch.Tensor]],
    dtype: torch.dtype,
    directory: Path,
    max_shard_bytes: int,
) -> Iterator[Path]:
    """Write each shard as soon as its last tensor is there; yield its path, and at last that of the index, if any."""
    shapes: _Tensors = {}
    for group in _groups(model):
        # The pieces of a tensor that is cut apart are views; anew, as each is counted with its whole storage.
        shapes |= _as_meta(_convert(model, _as_meta(group, dtype)), dtype)
    split = split_torch_state_dict_into_shards(shapes, filename_pattern=_WEIGHTS, max_shard_size=max_shard_bytes)
    # A tensor larger than a shard has a file of its own, so two files can be incomplete at a time.
    incomplete: dict[str, _Tensors] = {}
    for name, tensor in weights:
        file = split.tensor_to_filename[name]
        shard = incomplete.setdefault(file, {})
        # A view would keep all of what it was cut from.
        is_whole = tensor.untyped_storage().nbytes() == tensor.nbytes
        shard[name] = tensor.contiguous() if is_whole else tensor.clone(memory_format=torch.contiguous_format)
        if len(shard) == len(split.filename_to_tensors[file]):
            save_file(incomplete.pop(file), directory / file, metadata={"format": "pt"})
            yield directory / file
        del tensor, shard  # or the names would keep what is written alive while the next is gathered
    assert not incomplete
    if split.is_sharded:
        metadata = {"total_parameters": sum(shape.numel() for shape in shapes.values()), **split.metadata}
        index = json.dumps({"metadata": metadata, "weight_map": split.tensor_to_filename}, indent=2, sort_keys=True)
        (directory / _INDEX).write_text(index + "\n")
        yield directory / _INDEX


def _iterate_weights(model: PreTrainedModel, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield names and whole tensors of the published form, on the CPU; a collective for each tensor."""
    for group in _groups(model):
        whole = _convert(model, {name: _gather(tensor, dtype) for name, tensor in group.items()})
        for name in list(whole):
            yield name, whole.pop(name)


def _groups(model: PreTrainedModel) -> Iterator[_Tensors]:
    """Yield the tensors to store, as they are sharded: each decoder layer's together and every other one alone.

    What an architecture stores under other names or cut otherwise than it computes with (experts, say) is so within
    a layer.
    """
    tied = getattr(model, "all_tied_weights_keys", {})
    ignored = set(model._keys_to_ignore_on_save or ())
    layers = {id(layer) for layer in find_decoder_layers(model)}
    prefixes = tuple(f"{name}." for name, module in model.named_modules() if id(module) in layers)
    state: dict[str, Any] = get_model_state_dict(model)
    kept = [name for name in state if name not in ignored and name not in tied]
    for _, names in groupby(kept, key=lambda name: next((p for p in prefixes if name.startswith(p)), name)):
        yield {name: state[name] for name in names}


def _convert(model: PreTrainedModel, tensors: _Tensors) -> _Tensors:
    converted: _Tensors = revert_weight_conversion(model, tensors)
    return converted


def _as_meta(tensors: _Tensors, dtype: torch.dtype) -> _Tensors:
    return {
        name: torch.empty(t.shape, dtype=dtype if t.is_floating_point() else t.dtype, device="meta")
        for name, t in tensors.items()
    }


def _gather(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the whole of ``tensor`` on the CPU; cast before it is gathered, which moves fewer bytes."""
    if tensor.is_floating_point():
        tensor = tensor.to(dtype)
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu()


def _save_generation_config(config: GenerationConfig, directory: Path) -> None:
    """Write what can be written of it: checkpoints were published with settings that transformers now refuses to.

    Most often those are a temperature or top-p without ``do_sample``, without which they mean nothing.
    """
    try:
        config.save_pretrained(directory)
        return
    except ValueError:
        config.do_sample = True
    try:
        config.save_pretrained(directory)
    except ValueError as error:
        logger.warning("generation_config.json is left out, as transformers refuses it: %s", error)


def _save_description(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype, directory: Path
) -> None:
    """Write everything but the weights."""
    config: Any = model.config
    config.dtype = dtype
    config.architectures = [type(model).__name__.removeprefix("FSDP")]  # FSDP2 renames the class that it wraps
    config.save_pretrained(directory)
    if model.can_generate():
        _save_generation_config(model.generation_config, directory)
    if model.is_remote_code():
        custom_object_save(model, directory, config=config)
    tokenizer.save_pretrained(directory)
    for file in directory.iterdir():
        file.chmod(0o644)
