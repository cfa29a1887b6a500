"""The process group a student trains in, and how its parameters are spread over it with FSDP2.

One process without torch.distributed, `torchrun` and Ray Train workers all look the same through `World`.
"""

import ctypes
import datetime
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from configs.errors import UserError
from configs.schema import TrainingConfig, TrainingDtype
from training.job import JobDevice
from training.tensor_parallel import LayerPlan, cut_layer

# Below this many parameters a layer's all-gather costs its latency and not its bytes; it stays in the root's group.
_MIN_GROUP_PARAMETERS = 1_000_000

# Rank 0 may tokenise or upload for long while the others wait in a collective.
COLLECTIVE_TIMEOUT = datetime.timedelta(hours=2)

# torch looks at it when it first allocates something large on a CPU: it then asks for pages of 2 MiB where the kernel
# leaves that to programs, so that what comes and goes with each step costs few page faults.
_LARGE_PAGES = ("THP_MEM_ALLOC_ENABLE", "1")


# Of malloc.h: blocks of so many bytes go back to the system when they are freed, of others all but so many bytes. Until
# they are set, glibc's own thresholds grow with what is freed, up to 32 MiB.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGE_BYTES, _LARGEST_BYTES, _KEPT_BYTES = 2**20, 2**25, 2**30


@dataclass(frozen=True)
class World:
    """This process's place among the workers. At size 1 every collective is the identity.

    ``tensor_parallel_size`` neighbouring ranks are a group: they share each layer's matrices and see the same rows.
    """

    rank: int
    size: int
    device: torch.device
    tensor_parallel_size: int = 1

    def grouped(self, tensor_parallel_size: int) -> Self:
        """Return the same place in a world of groups of that size; UserError when they do not fill it."""
        if self.size % tensor_parallel_size:
            raise UserError(
                f"training.tensor_parallel_size ({tensor_parallel_size}) must divide the number of workers, "
                f"{self.size}; set it to a divisor, or to 1 to share no layer"
            )
        return replace(self, tensor_parallel_size=tensor_parallel_size)

    @property
    def data_rank(self) -> int:
        """This rank's group, which decides what rows it sees."""
        return self.rank // self.tensor_parallel_size

    @property
    def data_size(self) -> int:
        """How many groups there are."""
        return self.size // self.tensor_parallel_size

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
        """Return the sum of every group's ``value`` (float), which is the same on all ranks of a group."""
        value = value.detach().clone()
        if self.size > 1:
            dist.all_reduce(value)
        return value / self.tensor_parallel_size

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
        dist.init_process_group(_backend(device), timeout=COLLECTIVE_TIMEOUT)
    try:
        rank, size = (dist.get_rank(), dist.get_world_size()) if has_group or under_torchrun else (0, 1)
        if device is JobDevice.CPU:
            os.environ.setdefault(*_LARGE_PAGES)
            _set_malloc(is_alone=size == 1)
        yield World(rank, size, torch_device)
    finally:
        if not has_group and dist.is_initialized():  # by torchrun's variables above, or by `shard_model` alone
            dist.destroy_process_group()


def _set_malloc(*, is_alone: bool) -> None:
    """Have a process alone keep what it frees for its next step, and ranks return what FSDP2 gathers and frees."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # neither in musl nor in macOS
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_BYTES if is_alone else _LARGE_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES if is_alone else _LARGE_BYTES)


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


def shard_model(
    model: torch.nn.Module,
    layers: list[torch.nn.Module],
    config: TrainingConfig,
    world: World,
    plans: Sequence[LayerPlan] = (),
) -> None:
    """Spread ``model`` over the world in place: one FSDP2 group per large decoder layer and one for the rest.

    With ``training.shard_size`` there are several copies, each spread over that many neighbouring ranks, so that what
    is gathered stays within a node and only gradients leave it. UserError when it does not divide the world.
    The ranks of a tensor-parallel group cut each layer first, by ``plans``; FSDP2 then spreads a rank's part of it over
    its peers in the other groups, and what is in no layer over all ranks.

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
        meshes = build_meshes(config.shard_size or world.size, world)
        policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if is_bfloat16 else None, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        # FSDP2 shards no integers, so weights packed in 4 bits stay whole on each rank.
        packed = {p for p in model.parameters() if not p.is_floating_point()}
        if meshes.tensor is not None:
            # Warns of two collectives in a row, which the gradient's norm and the export take.
            logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
            for layer, plan in zip(layers, plans, strict=True):
                cut_layer(layer, plan, meshes.tensor)
        for layer in layers:
            # What is cut cannot be in the root's group, which is spread over the ranks that share it.
            if meshes.tensor is not None or sum(p.numel() for p in layer.parameters()) >= _MIN_GROUP_PARAMETERS:
                fully_shard(layer, mesh=meshes.layers, mp_policy=policy, ignored_params=packed)
        fully_shard(model, mesh=meshes.rest, mp_policy=policy, ignored_params=packed)
    if config.compile:
        for layer in layers:
            layer.compile()


def clip_gradients(model: torch.nn.Module, max_norm: float) -> float:
    """Scale the gradients so that their norm is ``max_norm`` at most; return what it was, over the whole student."""
    # Parameters that are spread over other ranks cannot be in one operation.
    by_mesh: dict[DeviceMesh | None, list[torch.nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.grad is not None:
            mesh = parameter.device_mesh if isinstance(parameter, DTensor) else None
            by_mesh.setdefault(mesh, []).append(parameter)
    norms = [get_total_norm([p.grad for p in group if p.grad is not None]) for group in by_mesh.values()]
    whole = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    norm = torch.linalg.vector_norm(torch.stack(whole))
    for group in by_mesh.values():
        clip_grads_with_norm_(group, max_norm, norm)
    return norm.item()


@dataclass(frozen=True, slots=True)
class Meshes:
    """Over which ranks FSDP2 spreads decoder layers, and what is in none; over which a layer's matrices are shared."""

    layers: DeviceMesh
    rest: DeviceMesh
    tensor: DeviceMesh | None


def build_meshes(shard_size: int, world: World) -> Meshes:
    """Return the meshes of a world in which one copy of the student is spread over ``shard_size`` ranks.

    Eight ranks in groups of two, a copy on four: ``layers`` is 2 x 2 (copies, parts of a copy), ``tensor`` has the 2
    neighbours, and ``rest`` is 2 x 4.
    """
    size = world.tensor_parallel_size
    if world.size % shard_size:
        raise UserError(
            f"training.shard_size ({shard_size}) must divide the number of workers, {world.size}; set it to a divisor, "
            "or leave it out to spread one copy over all of them"
        )
    copies = () if shard_size == world.size else (world.size // shard_size,)
    names = ("replicate", "shard", "tensor")[1 - len(copies) :]
    rest = init_device_mesh(world.device.type, (*copies, shard_size), mesh_dim_names=names[:-1])
    if size == 1:
        return Meshes(rest, rest, None)
    mesh = init_device_mesh(world.device.type, (*copies, shard_size // size, size), mesh_dim_names=names)
    return Meshes(mesh[names[:-1]], rest, mesh["tensor"])
