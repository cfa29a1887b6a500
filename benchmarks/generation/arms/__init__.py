"""One module a way to run the engine; each has an ``open_...`` context manager that yields an `Arm`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from benchmarks.generation.workloads import WorkItem

START_S = 600.0
RUN_S = 1800.0


@dataclass(frozen=True, slots=True)
class ArmSettings:
    """What every arm is told. ``generation`` and ``window_rows`` are of use to ours alone."""

    model: str
    engine: dict[str, Any]
    directory: Path
    window_rows: int
    generation: dict[str, Any]


@dataclass(frozen=True, slots=True)
class RowDone:
    """A completed row; ``at`` is Unix time, as several processes take it on one machine.

    Example: ``RowDone(index=17, tokens=128, at=1795300000.25)``.
    """

    index: int
    tokens: int
    at: float


Run = Callable[[], list[RowDone]]


class Arm(Protocol):
    """A running engine with all that stands before it."""

    def prepare(self, rows: list[WorkItem], number: int, *, reorder: bool = True) -> Run:
        """Bring the rows into the arm's own form; the time of that is not measured, that of the result's call is.

        Ours alone can ask for rows in an order of its own (``reorder``).
        """
        ...
