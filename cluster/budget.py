"""What a run has cost so far, over all its commands, and the stop when `budget` is reached.

The sum lies in ``spending.json`` of the run directory, so a resumed run counts on. Counted is the time that a command
has a cluster, and all that the cluster has at the prices of `configs.prices`: a node that idles costs as much.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cluster.run_dir import RunDir
from configs.errors import BudgetReached
from configs.prices import PriceTable
from configs.schema import BudgetConfig

FILE = "spending.json"
COUNT_EVERY_S = 5.0  # the price of a cluster follows its nodes; a command that is killed forgets so much at most
ACCELERATOR_PREFIX = "accelerator_type:"  # how Ray names a node's GPUs among its resources


@dataclass(frozen=True, slots=True)
class Spending:
    """Of all commands of a run: ``Spending(seconds=7200.0, usd=48.0)``; ``unpriced`` are GPU types without a price."""

    seconds: float = 0.0
    usd: float = 0.0
    unpriced: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rate:
    """What a cluster costs as it is."""

    usd_per_hour: float
    unpriced: tuple[str, ...] = ()


def cluster_rate(nodes: Sequence[Mapping[str, float]], prices: PriceTable) -> Rate:
    """The price of nodes, each Ray's resources of it. A GPU's price has its share of the machine in it."""
    usd_per_hour, unpriced = 0.0, set[str]()
    for node in nodes:
        gpus = node.get("GPU", 0.0)
        if not gpus:
            usd_per_hour += node.get("CPU", 0.0) * prices.cpu_core.usd_per_hour
            continue
        names = [name.removeprefix(ACCELERATOR_PREFIX) for name in node if name.startswith(ACCELERATOR_PREFIX)]
        names.sort(key=len, reverse=True)  # A100-80G beside A100: the longer name is the more exact one
        price = next((price for name in names if (price := prices.find(name)) is not None), None)
        if price is None:
            unpriced.update(names or ["GPU of an unknown type"])
        else:
            usd_per_hour += gpus * price.usd_per_hour
    return Rate(usd_per_hour, tuple(sorted(unpriced)))


class Budget:
    """Counts what this command spends on top of what earlier ones have; `check` raises once a limit is reached.

    ``current_rate`` says what the cluster costs now, None while the command has none. Safe to call from any thread.
    """

    def __init__(
        self,
        limits: BudgetConfig,
        run_dir: RunDir,
        current_rate: Callable[[], Rate | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits, self._run_dir = limits, run_dir
        self._current_rate, self._clock = current_rate, clock
        self._spent = read_spending(run_dir)
        self._rate: Rate | None = None
        self._counted_at = clock()
        self._lock = threading.Lock()

    @property
    def usd_per_hour(self) -> float:
        """What the cluster cost when it was last looked at."""
        return self._rate.usd_per_hour if self._rate is not None else 0.0

    def spent(self, *, now: bool = False) -> Spending:
        """The sum up to this moment; counts and writes it every few seconds, or ``now``."""
        with self._lock:
            passed_s = self._clock() - self._counted_at
            if now or passed_s >= COUNT_EVERY_S or self._rate is None:
                self._count(passed_s, self._current_rate())
            return self._spent

    def close(self) -> None:
        """Count what is left, at the last known rate: the cluster may be gone already."""
        with self._lock:
            self._count(self._clock() - self._counted_at, self._rate)

    def _count(self, passed_s: float, rate_now: Rate | None) -> None:
        self._counted_at += passed_s
        before, self._rate = self._rate, rate_now
        if before is None and self._rate is None:  # no cluster yet: nothing is spent
            return
        # Nodes that came or went meanwhile count as they are at the end; a new cluster from when it was seen first.
        rate = self._rate or before
        assert rate is not None
        if before is not None:
            self._spent = Spending(
                self._spent.seconds + passed_s,
                self._spent.usd + passed_s * rate.usd_per_hour / 3600,
                tuple(sorted({*self._spent.unpriced, *rate.unpriced})),
            )
            self._run_dir.write_json(FILE, asdict(self._spent))

    def is_reached(self) -> bool:
        """Whether a limit is reached."""
        return self._words() is not None

    def check(self) -> None:
        """Raises `BudgetReached` once a limit is reached; the sentence says what was spent and how to go on."""
        if (words := self._words()) is not None:
            self.spent(now=True)
            raise BudgetReached(words)

    def _words(self) -> str | None:
        spent, limits = self.spent(), self._limits
        said = f"{spent.seconds / 3600:.2f} hours and ${spent.usd:.2f} are spent"
        if limits.max_usd is not None and spent.usd >= limits.max_usd:
            return _stop("max_usd", f"${limits.max_usd:g}", said)
        if limits.max_hours is not None and spent.seconds >= 3600 * limits.max_hours:
            return _stop("max_hours", f"{limits.max_hours:g}", said)
        return None


def read_spending(run_dir: RunDir) -> Spending:
    """What all commands of a run have spent so far."""
    saved: dict[str, Any] | None = run_dir.read_json(FILE)
    if saved is None:
        return Spending()
    return Spending(saved["seconds"], saved["usd"], tuple(saved["unpriced"]))


def _stop(key: str, limit: str, said: str) -> str:
    return (
        f"budget.{key} ({limit}) is reached: {said}, and what was committed is kept; raise budget.{key} and give the "
        "same command to go on"
    )
