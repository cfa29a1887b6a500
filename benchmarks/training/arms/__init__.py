"""One module a way to train the same student; standard library only here, as one arm has an environment of its own."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

WARM_UP_STEPS = 2  # the first steps choose kernels and grow the heap


@dataclass(frozen=True, slots=True)
class Order:
    """One training run from the first step on; ``output_dir`` does not exist yet.

    ``rows`` is the Parquet file of all rows, ``tensors`` holds the packs of ``num_steps`` steps made of them;
    ``training`` overrides keys of the job's training section and is for ours alone.
    """

    rows: str
    tensors: str
    model: str
    output_dir: str
    workload: dict[str, Any]
    training: dict[str, Any] = field(default_factory=dict)

    @property
    def num_steps(self) -> int:
        return int(self.workload["num_steps"])


@dataclass(frozen=True, slots=True)
class Step:
    """One optimiser step; ``loss_tokens`` are those of this step, ``loss`` is its mean or None where it is unknown.

    Example: ``Step(number=1, loss=8.4, loss_tokens=1536, seconds=1.05)``.
    """

    number: int
    loss: float | None
    loss_tokens: int
    seconds: float
    data_wait_s: float = 0.0
    checkpoint_blocked_s: float = 0.0


OnStep = Callable[[Step], None]


class Arm(Protocol):
    """A process that has loaded its libraries."""

    def run(self, order: Order, on_step: OnStep) -> None:
        """Train; ``on_step`` is called after each step, at once."""
        ...


@dataclass(frozen=True, slots=True)
class ArmSettings:
    """What every arm is told; what trains runs on ``cores`` alone, an arm's other processes on ``others``."""

    directory: Path
    cores: tuple[int, ...]
    others: tuple[int, ...]
