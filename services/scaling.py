"""How many replicas a teacher should have: by the tokens that are still to be made and a deadline, not by latency.

`BacklogPolicy` is the autoscaling policy that Serve's controller calls, `wanted_replicas` the decision itself. What
they go by comes from the replicas (`services.meter`). Serve sends this module to its controller by value, so it imports
nothing of ours.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

HEADROOM = 1.2  # a replica is given up when the others have a fifth more time than they need: speeds vary
SILENCE_S = 120.0  # a run tells its backlog every few seconds; one that is silent for so long is dead


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the recipe allows. ``window_rows``: rows that one replica decodes at a time."""

    min_replicas: int
    max_replicas: int
    window_rows: int


@dataclass(frozen=True, slots=True)
class Backlog:
    """What the run has told: rows without an answer, and seconds until they should have one; None without a deadline.

    ``Backlog(50_000, 3600.0)``: fifty thousand rows within an hour.
    """

    rows: int
    seconds_left: float | None


@dataclass(frozen=True, slots=True)
class Pace:
    """What replicas have measured: tokens/s of one, mean tokens of an answer, seconds until one is ready."""

    tokens_per_s: float
    tokens_per_row: float
    cold_start_s: float


def wanted_replicas(backlog: Backlog, pace: Pace | None, current: int, bounds: Bounds) -> int:
    """How many replicas there should be; ``current`` are up or on their way, ``pace`` is None until it is known.

    With a deadline: the fewest that meet it, a further one counting only from when it is ready. Without one, or when it
    cannot be met any more: as many as have work for at least the time that one takes to start. Never more than there
    are windows of rows left, so that none starts for a tail of a few rows; none at all without rows.
    """
    if backlog.rows <= 0:
        return 0
    most = max(bounds.min_replicas, min(bounds.max_replicas, math.ceil(backlog.rows / bounds.window_rows)))
    wanted = current if pace is None else _by_pace(backlog, pace, current)
    return max(bounds.min_replicas, min(most, wanted))


def _by_pace(backlog: Backlog, pace: Pace, current: int) -> int:
    tokens = backlog.rows * pace.tokens_per_row
    # Those that are up are kept: fewer of them would need as many replica-seconds, and end later.
    kept_busy = max(current, math.floor(tokens / (pace.tokens_per_s * max(1.0, pace.cold_start_s))))
    left = backlog.seconds_left
    if left is None or left <= 0:
        return kept_busy
    if tokens * HEADROOM <= current * pace.tokens_per_s * left:
        return math.ceil(tokens * HEADROOM / (pace.tokens_per_s * left))
    too_many = tokens - current * pace.tokens_per_s * left
    if too_many <= 0:
        return current
    if left <= pace.cold_start_s:
        return kept_busy
    return current + math.ceil(too_many / (pace.tokens_per_s * (left - pace.cold_start_s)))


class BacklogPolicy:
    """Serve calls it some ten times a second with what the replicas have reported."""

    def __init__(self, min_replicas: int, max_replicas: int, window_rows: int) -> None:
        self._bounds = Bounds(min_replicas, max_replicas, window_rows)
        self._sign_of_life = 0.0
        # Remembered, since the replica that was told last may be the one that has just been scaled away.
        self._told: dict[str, float] | None = None
        self._pace: Pace | None = None

    def __call__(self, ctx: "AutoscalingContext") -> tuple[int, dict[str, Any]]:
        """The wanted number of replicas; the second value is the state that Serve keeps for a policy, and is empty."""
        now, replicas = ctx.current_time or 0.0, latest_reports(ctx.raw_metrics or {})
        told = [each for each in (*replicas, self._told) if each is not None and each["told_at"] > 0]
        self._told = max(told, key=lambda each: each["told_at"], default=None)
        self._pace = mean_pace(replicas) or self._pace
        if ctx.total_num_requests > 0 or ctx.current_num_replicas == 0 or not self._sign_of_life:
            self._sign_of_life = now
        if self._told is None:
            return (ctx.target_num_replicas if now - self._sign_of_life <= SILENCE_S else 0), {}
        if now - max(self._sign_of_life, self._told["told_at"]) > SILENCE_S:
            return 0, {}
        seconds_left = self._told["ends_at"] - now if self._told["ends_at"] else None
        backlog = Backlog(int(self._told["rows"]), seconds_left)
        return wanted_replicas(backlog, self._pace, ctx.target_num_replicas, self._bounds), {}


def latest_reports(metrics: dict[str, dict[Any, list[Any]]]) -> list[dict[str, float]]:
    """Each replica's newest report, from Serve's time series of each value of each replica."""
    reports: dict[Any, dict[str, float]] = {}
    for name, series in metrics.items():
        for replica, points in series.items():
            if points:
                reports.setdefault(replica, {})[name] = points[-1].value
    return [each for each in reports.values() if "told_at" in each]


def mean_pace(replicas: list[dict[str, float]]) -> Pace | None:
    """The mean of those that have answered for long enough to know; None while none has."""
    measured = [each for each in replicas if each["tokens_per_s"] > 0]
    if not measured:
        return None
    mean = {key: sum(each[key] for each in measured) / len(measured) for key in measured[0]}
    return Pace(mean["tokens_per_s"], mean["tokens_per_row"], mean["cold_start_s"])
