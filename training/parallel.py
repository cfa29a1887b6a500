"""The process group a student trains in, and how its parameters are spread over it with FSDP2.

One process without torch.distributed, `torchrun` and Ray Train workers all look the same through `World`.
"""

import ctypes
import datetime
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from configs.errors import UserError
from configs.schema import TrainingConfig, TrainingDtype
from training.job import JobDevice

# Below this many parameters a layer's all-gather costs its latency and not its bytes; it stays in the root's group.
_MIN_GROUP_PARAMETERS = 1_000_000

# Rank 0 may tokenise or upload for long while the others wait in a collective.
_COLLECTIVE_TIMEOUT = datetime.timedelta(hours=2)

# Of malloc.h, and the bytes from which a block counts as large. A threshold that was set no longer grows with what is
# freed, as glibc's own does, up to 32 MiB.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGE_BYTES = 2**20


@dataclass(frozen=True)
class World:
    """This process's place among the workers. At size 1 every collective is the identity."""

    rank: int
    size: int
    device: torch.device

    def gather(self, value: Any) -> list[Any]:
        """Return each rank's ``value``, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's ``value``."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, device=self.device)
        return values[0]

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """Return the sum of every rank's ``value``."""
        value = value.detach().clone()
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.size > 1:
            dist.barrier()

    @contextmanager
    def agreement(self) -> Iterator[None]:
        """Raise a UserError of any rank's block on every rank, so that none is left waiting. No collectives inside."""
        error: UserError | None = None
        try:
            yield
        except UserError as caught:
            error = caught
        for found in self.gather(error):
            if found is not None:
                raise found


@contextmanager
def joined_world(device: JobDevice) -> Iterator[World]:
    """Join the process group of Ray Train or `torchrun`, or stand alone; leave what was joined here at the end."""
    has_group = dist.is_initialized()
    under_torchrun = not has_group and int(os.environ.get("WORLD_SIZE", "1")) > 1
    torch_device = _local_device(device)
    if under_torchrun:
        dist.init_process_group(_backend(device), timeout=_COLLECTIVE_TIMEOUT)
    try:
        if has_group or under_torchrun:
            if device is JobDevice.CPU and dist.get_world_size() > 1:
                _return_freed_memory()
            yield World(dist.get_rank(), dist.get_world_size(), torch_device)
        else:
            yield World(0, 1, torch_device)
    finally:
        if not has_group and dist.is_initialized():  # by torchrun's variables above, or by `shard_model` alone
            dist.destroy_process_group()


def _return_freed_memory() -> None:
    """Have glibc return large blocks when they are freed; it would keep most of what FSDP2 gathers and frees."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # neither in musl nor in macOS
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _LARGE_BYTES)


def _backend(device: JobDevice) -> str:
    return "nccl" if device is JobDevice.GPU else "gloo"


def _local_device(device: JobDevice) -> torch.device:
    if device is JobDevice.CPU:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError(
            "the job asks for a GPU (student.device=gpu) and this process sees none; use student.device=cpu"
        )
    local = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    torch.cuda.set_device(local)
    return local


def shard_model(model: torch.nn.Module, layers: list[torch.nn.Module], config: TrainingConfig, world: World) -> None:
    """Spread ``model`` over the world in place: one FSDP2 group per large decoder layer and one for the rest.

    With ``training.shard_size`` there are several copies, each spread over that many neighbouring ranks, so that what
    is gathered stays within a node and only gradients leave it. UserError when it does not divide the world.

    Parameters stay float32; with dtype bfloat16 they are gathered and used in bfloat16 and gradients are reduced in
    float32. One process in float32 needs none of it and is left as it is. A model without weights stays without.
    """
    if not any(parameter.is_meta for parameter in model.parameters()):
        model.to(world.device)
    is_bfloat16 = config.dtype is TrainingDtype.BFLOAT16
    if world.size > 1 or is_bfloat16:
        if not dist.is_initialized():
            # FSDP2 also does the mixed precision, so that the numbers are the same in one process as in many.
            backend = "nccl" if world.device.type == "cuda" else "gloo"
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        mesh = _build_mesh(config.shard_size or world.size, world)
        policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if is_bfloat16 else None, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        # FSDP2 shards no integers, so weights packed in 4 bits stay whole on each rank.
        packed = {p for p in model.parameters() if not p.is_floating_point()}
        for layer in layers:
            if sum(p.numel() for p in layer.parameters()) >= _MIN_GROUP_PARAMETERS:
                fully_shard(layer, mesh=mesh, mp_policy=policy, ignored_params=packed)
        fully_shard(model, mesh=mesh, mp_policy=policy, ignored_params=packed)
    if config.compile:
        for layer in layers:
            layer.compile()


def _build_mesh(shard_size: int, world: World) -> DeviceMesh:
    if world.size % shard_size:
        raise UserError(
            f"training.shard_size ({shard_size}) must divide the number of workers, {world.size}; set it to a divisor, "
            "or leave it out to spread one copy over all of them"
        )
    if shard_size == world.size:
        return init_device_mesh(world.device.type, (world.size,))
    shape = (world.size // shard_size, shard_size)
    return init_device_mesh(world.device.type, shape, mesh_dim_names=("replicate", "shard"))
