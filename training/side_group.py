"""A second process group for plain data on the CPU, beside the one that the steps use.

Collectives of two threads, or of a GPU's group and a flag in host memory, would get in each other's way in one group.
"""

import datetime
from typing import Any

import torch
import torch.distributed as dist

from training.parallel import World

# Rank 0 may upload for long while the others wait for it.
_TIMEOUT = datetime.timedelta(hours=2)


class SideGroup:
    """All ranks over gloo; every rank makes one at the same place, and calls each method at the same place.

    ``group`` is None at world size 1, where every collective is the identity.
    """

    def __init__(self, world: World) -> None:
        self._size = world.size
        self.group: dist.ProcessGroup | None = None
        if world.size > 1:
            self.group = dist.new_group(backend="gloo", timeout=_TIMEOUT)

    def gather(self, value: Any) -> list[Any]:
        """Return each rank's ``value``, by rank."""
        if self.group is None:
            return [value]
        values: list[Any] = [None] * self._size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def start_any(self, flag: torch.Tensor) -> dist.Work | None:
        """Start to make ``flag`` (one element, on the CPU) the largest of all ranks'; the handle says when it is."""
        if self.group is None:
            return None
        return dist.all_reduce(flag, dist.ReduceOp.MAX, group=self.group, async_op=True)

    def close(self) -> None:
        """Leave the group."""
        if self.group is not None:
            dist.destroy_process_group(self.group)
            self.group = None
