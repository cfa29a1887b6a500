"""Hands the weights that rank 0 has to all ranks, a tensor at a time: no other rank ever holds a whole student."""

import copy
from itertools import chain
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

from training.parallel import World

M = TypeVar("M", bound=torch.nn.Module)


def without_weights(model: M) -> M:
    """Return a copy of ``model`` with meta tensors in place of parameters and buffers; what is tied stays tied."""
    # Not built from the configuration: whether weights are tied, say, is also up to what a checkpoint holds.
    empty: dict[int, object] = {}
    for tensor in chain(model.parameters(), model.buffers()):
        meta = torch.empty_like(tensor, device="meta")
        is_parameter = isinstance(tensor, torch.nn.Parameter)
        empty[id(tensor)] = torch.nn.Parameter(meta, requires_grad=tensor.requires_grad) if is_parameter else meta
    return copy.deepcopy(model, empty)


@torch.no_grad()
def fill_weights(model: torch.nn.Module, whole: torch.nn.Module, world: World) -> None:
    """Fill ``model``, which is spread over the world, with the weights of rank 0's ``whole``; all ranks call it."""
    model.to_empty(device=world.device)
    weights = whole.state_dict() if world.rank == 0 else {}
    set_model_state_dict(model, weights, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True))
    # Buffers that are no part of a state dict, such as the frequencies of rotary embeddings.
    for name, buffer in model.named_buffers():
        if world.rank == 0:
            buffer.copy_(whole.get_buffer(name))
        dist.broadcast(buffer, src=0)
