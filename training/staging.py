"""Copies a training state into host memory, into the same buffers each time, so that a thread can write it meanwhile.

torch's own stager copies tensor by tensor in Python, which takes a small student as long as the bytes do.
"""

from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_flatten, tree_unflatten

# Where a tensor is, and how it is laid out there.
_Memory = tuple[int, torch.Size, torch.dtype]


class Staging:
    """The host's buffers of one state, allocated by the first copy; pinned where the state is on a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._is_gpu = device.type == "cuda"
        self._buffers: dict[_Memory, torch.Tensor] = {}

    @torch.no_grad()
    def copy(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return ``state`` with its tensors in buffers, which the next call overwrites; sharded ones stay sharded.

        It returns when all is copied: the next optimiser step changes the originals.
        """
        leaves, structure = tree_flatten(state)
        tensors = {place: _local(leaf) for place, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)}
        # Tied weights have two names and one memory, which is the same at each call.
        sources = {_memory_of(tensor): tensor for tensor in tensors.values()}
        self._buffers = {
            memory: self._buffers[memory] if memory in self._buffers else self._allocate(tensor)
            for memory, tensor in sources.items()
        }
        torch._foreach_copy_(list(self._buffers.values()), list(sources.values()), non_blocking=self._is_gpu)
        if self._is_gpu:
            torch.cuda.current_stream().synchronize()
        for place, tensor in tensors.items():
            leaves[place] = _as_sharded(self._buffers[_memory_of(tensor)], leaves[place])
        copied: dict[str, Any] = tree_unflatten(leaves, structure)
        return copied

    def _allocate(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(tensor, device="cpu", pin_memory=self._is_gpu)


def _memory_of(tensor: torch.Tensor) -> _Memory:
    return tensor.data_ptr(), tensor.shape, tensor.dtype


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _as_sharded(buffer: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
    """Return ``buffer`` as the same part of the whole that ``original`` is; `from_local` would move it to the GPU."""
    if not isinstance(original, DTensor):
        return buffer
    build: Any = DTensor  # torch leaves it untyped
    sharded: torch.Tensor = build(buffer, original._spec, requires_grad=False)
    return sharded
