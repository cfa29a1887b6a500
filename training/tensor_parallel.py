"""Tensor parallelism: the ranks of a group compute each decoder layer together, each with its part of the matrices.

What is cut and how is transformers' own plan for the architecture (`base_model_tp_plan`), applied with torch's styles:
a first matrix by its outputs, the one after it by its inputs, and the partial sums are added up. Hidden states, norms,
embeddings and the output matrix are whole on each rank, so the loss knows nothing of it.
"""

import re

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from transformers import PreTrainedModel

from configs.errors import UserError
from configs.tensor_parallel import check_heads

_CUT_DIMENSIONS = {"colwise": 0, "rowwise": 1}  # of a weight
_CUT_NAMES = {"colwise": "outputs", "rowwise": "inputs"}
_HEAD_NORM = "replicated_with_grad_allreduce"  # the same on each rank, which sees its own heads alone

LayerPlan = dict[str, str]


def plan_layers(model: PreTrainedModel, layers: list[torch.nn.Module], size: int) -> list[LayerPlan]:
    """Return for each of the decoder ``layers`` what is cut between ``size`` ranks: transformers' styles by name.

    Of a Llama's layer ``{"self_attn.q_proj": "colwise", ..., "self_attn.o_proj": "rowwise", ...}``; nothing at size 1.
    UserError when transformers has no plan for the architecture, when that cuts other things than plain matrices (those
    of experts, say, or several in one) or not all of them, and when heads or matrices do not divide by ``size``.
    """
    if size == 1:
        return [{} for _ in layers]
    kind = model.config.model_type
    asked = f"training.tensor_parallel_size={size} cannot be had for a student of type {kind}"
    instead = "set it to 1, and where the student then does not fit, more workers or activation_checkpointing"
    plan: LayerPlan = getattr(model.base_model.config, "base_model_tp_plan", None) or {}
    # A star is a layer's number. What is in none stays whole: embeddings, which transformers would cut where tied.
    plan = {key: style for key, style in plan.items() if "*" in key}
    if not plan:
        raise UserError(f"{asked}, for which transformers has no plan; {instead}")
    if strange := sorted(set(plan.values()) - {*_CUT_DIMENSIONS, _HEAD_NORM}):
        raise UserError(f"{asked}: transformers' plan for it cuts more than plain matrices ({strange[0]}); {instead}")
    config = model.config.get_text_config()
    num_heads = config.num_attention_heads
    check_heads(num_heads, getattr(config, "num_key_value_heads", None) or num_heads, size)
    names = {id(module): name for name, module in model.base_model.named_modules()}
    plans = [_plan_layer(layer, names[id(layer)], plan) for layer in layers]
    for layer, of_layer in zip(layers, plans, strict=True):
        if whole := _find_whole(layer, of_layer):
            raise UserError(f"{asked}: transformers' plan for it leaves out {whole}; {instead}")
        for name in of_layer:
            _check_width(layer, name, of_layer[name], size)
    return plans


def _plan_layer(layer: torch.nn.Module, prefix: str, plan: LayerPlan) -> LayerPlan:
    keys = {name: re.sub(r"\b\d+\b", "*", f"{prefix}.{name}") for name, _ in layer.named_modules()}
    return {name: plan[key] for name, key in keys.items() if key in plan}


def _find_whole(layer: torch.nn.Module, plan: LayerPlan) -> str | None:
    """Return a parameter that the plan should name and does not: a matrix, or one that sees some of the heads alone."""
    parents = {name.rpartition(".")[0] for name in plan}
    for name, parameter in layer.named_parameters():
        module = name.rpartition(".")[0]
        if module not in plan and (parameter.ndim >= 2 or module.rpartition(".")[0] in parents or module in parents):
            return name
    return None


def _check_width(layer: torch.nn.Module, name: str, style: str, size: int) -> None:
    if style == _HEAD_NORM:
        return
    width, what = layer.get_parameter(f"{name}.weight").shape[_CUT_DIMENSIONS[style]], _CUT_NAMES[style]
    if width % size:
        raise UserError(
            f"training.tensor_parallel_size ({size}) must divide the {width} {what} of the student's {name}; "
            "set it to a divisor"
        )


def cut_layer(layer: torch.nn.Module, plan: LayerPlan, mesh: DeviceMesh) -> None:
    """Cut the matrices of a decoder layer between the ranks of ``mesh``, in place; its input and output stay whole."""
    parallelize_module(layer, mesh, {name: _style(style) for name, style in plan.items()})


def _style(name: str) -> ParallelStyle:
    match name:
        case "colwise":
            return ColwiseParallel()
        case "rowwise":
            return RowwiseParallel()
        case _:
            # Any dimension but the last would do, which is the one normalised: that of the batch.
            return SequenceParallel(sequence_dim=0, use_local_output=True)
