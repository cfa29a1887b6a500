"""Stops training at a step that all ranks agree on, once one of them hears that its machine will be taken away."""

from collections.abc import Callable
from types import TracebackType
from typing import Self

import torch
import torch.distributed as dist

from training.parallel import World
from training.side_group import SideGroup


class Preempted(Exception):
    """Training stopped before its end, with a checkpoint of its last step; the job run again goes on from there."""

    def __init__(self, step: int, num_steps: int) -> None:
        super().__init__(f"stopped after step {step} of {num_steps}, with a checkpoint")


class StopAgreement:
    """Asks every rank at the start of a step whether it was given notice, and answers the same on all at its end.

    The question travels while the step is taken, so it costs a step nothing; a notice is acted upon at the end of the
    step after it. Every rank calls each method at the same place.
    """

    def __init__(self, is_noticed: Callable[[], bool], world: World) -> None:
        self._is_noticed = is_noticed
        self._group = SideGroup(world)
        self._flag = torch.zeros(1, dtype=torch.int32)
        self._answer: dist.Work | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._group.close()

    def ask(self) -> None:
        """Ask, at the start of a step."""
        self._flag.fill_(self._is_noticed())
        self._answer = self._group.start_any(self._flag)

    def is_agreed(self) -> bool:
        """Return, at the end of the step, whether any rank had notice at its start."""
        if self._answer is not None:
            self._answer.wait()
        return bool(self._flag.item())
