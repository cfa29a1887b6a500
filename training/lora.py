"""LoRA students (Hu et al. 2021): low-rank adapters are trained beside frozen weights, and merged into them at the end.

`training.setup` adds them, `training.loop` saves and merges them before the export. peft makes the layers. The frozen
weights may be packed in 4 bits (QLoRA); what is exported is then merged into the weights as they were.
"""

import warnings

import torch
from peft import LoraConfig as PeftConfig
from peft import inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from configs.errors import UserError
from configs.schema import TrainingDtype
from training import storage
from training.job import TrainJob
from training.model import build_model, find_decoder_layers
from training.parallel import World

_ADAPTER = "default"  # peft's name of an adapter that has none


def is_quantized(job: TrainJob) -> bool:
    """Return whether the frozen weights are packed in 4 bits."""
    return job.lora is not None and job.lora["quantization"] is not None


def quantize_base(model: PreTrainedModel, job: TrainJob, device: torch.device) -> None:
    """Pack the linear layers within decoder layers, on ``device``; nothing without ``student.lora.quantization``.

    All else stays in float32 and is frozen by `add_adapters`, as `peft.prepare_model_for_kbit_training` would have it.
    UserError when bitsandbytes is missing or there is nothing to pack.
    """
    if not is_quantized(job):
        return
    try:
        from training.linear4bit import pack_linear_layers  # loads bitsandbytes, an optional extra
    except ImportError as error:
        raise UserError(
            "student.lora.quantization needs bitsandbytes, which is not installed; install the extra qlora of "
            "pyproject.toml wherever the student trains, or leave the key out"
        ) from error
    dtype = torch.bfloat16 if job.training.dtype is TrainingDtype.BFLOAT16 else torch.float32
    if not sum(pack_linear_layers(layer, dtype, device) for layer in find_decoder_layers(model)):
        raise UserError(
            f"student.lora.quantization finds no linear layer in a student of type {model.config.model_type}; "
            "leave the key out"
        )
    model.is_loaded_in_4bit = True  # peft asks for it


def add_adapters(model: PreTrainedModel, job: TrainJob) -> None:
    """Put adapters beside the matrices that ``student.lora`` names, freeze all else; nothing without such a section.

    The adapters are the same on every rank and begin as no change. UserError when no matrix has such a name, and under
    tensor parallelism, for which nothing says how adapters are cut.
    """
    if job.lora is None:
        return
    if job.training.tensor_parallel_size > 1:
        raise UserError(
            f"training.tensor_parallel_size ({job.training.tensor_parallel_size}) must be 1 with student.lora, whose "
            "adapters are not cut; give the student more workers instead"
        )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # GPT-2's transposed matrices; peft then does what is right and says so.
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")
        torch.manual_seed(job.training.seed)
        try:
            inject_adapter_in_model(_peft_config(job), model)
        except ValueError as error:
            raise UserError(
                f"student.lora.target_modules {job.lora['target_modules']} names no matrix of this student ({error}); "
                "leave it out to adapt every linear layer"
            ) from error


def save_adapters(model: PreTrainedModel, job: TrainJob, world: World) -> None:
    """Write the adapters as peft loads them to ``<output_dir>/adapter``; every rank calls it, rank 0 writes."""
    tensors = {
        f"base_model.model.{name.replace(f'.{_ADAPTER}.', '.')}": tensor
        for name, tensor in _gather_adapters(model).items()
    }
    if world.rank == 0:
        with storage.replaced_directory(storage.join(job.output_dir, "adapter")) as local:
            save_file(
                {name: tensor.contiguous() for name, tensor in tensors.items()}, local / "adapter_model.safetensors"
            )
            config = _peft_config(job)
            config.base_model_name_or_path = job.model
            config.save_pretrained(str(local))
            for file in local.iterdir():
                file.chmod(0o644)
    world.barrier()


@torch.no_grad()
def merge_adapters(model: PreTrainedModel) -> None:
    """Add each adapter's product to its matrix and take the adapters out; every rank calls it."""
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]
    for name, layer in layers:
        base = layer.get_base_layer()
        a_RI, b_OR = (_whole(model.get_parameter(f"{name}.lora_{side}.{_ADAPTER}.weight")) for side in "AB")
        delta = (b_OR @ a_RI) * layer.scaling[_ADAPTER]
        if isinstance(base, Conv1D):
            delta = delta.T  # GPT-2 stores its matrices transposed
        if isinstance(base.weight, DTensor):
            delta = distribute_tensor(delta, base.weight.device_mesh, base.weight.placements)
        base.weight += delta.to(base.weight.dtype)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, base)


def merge_into_original(
    model: PreTrainedModel, job: TrainJob, tokenizer: PreTrainedTokenizerBase, world: World
) -> PreTrainedModel | None:
    """Return the student as it was before it was packed, with the adapters merged, on rank 0; None on all others.

    Every rank calls it. It is in float32 on the CPU.
    """
    adapters = _gather_adapters(model)
    original = None
    with world.agreement():
        if world.rank == 0:
            original = build_model(job, tokenizer)
            add_adapters(original, job)
            found = original.load_state_dict(adapters, strict=False)
            assert not found.unexpected_keys
            merge_adapters(original)
    return original


def _gather_adapters(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return the whole adapters on the CPU, by the names that they have in ``model``; a collective for each."""
    learnt = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    return {name: _whole(parameter.detach()).cpu() for name, parameter in learnt}


def _peft_config(job: TrainJob) -> PeftConfig:
    assert job.lora is not None
    return PeftConfig(
        r=job.lora["r"],
        lora_alpha=job.lora["alpha"],
        lora_dropout=job.lora["dropout"],
        target_modules=list(job.lora["target_modules"]) or "all-linear",
        task_type="CAUSAL_LM",
    )


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
