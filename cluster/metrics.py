"""The numbers of a run that Prometheus scrapes: one list of all that ``stillhouse status`` shows.

`Progress` records them through Ray, whose agents export every metric of a cluster; `cluster.dashboard` draws the
dashboard from the same list. A number that a phase reports and that is not listed here fails a test.
"""

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PREFIX = "stillhouse_"
EXPORTED_PREFIX = f"ray_{PREFIX}"  # Ray puts its own name before every metric
TAGS = ("run", "phase")


@dataclass(frozen=True, slots=True)
class Metric:
    """One number: `Metric("loss", "Mean loss of a step's loss tokens (nats)", "short", "Loss")`."""

    key: str
    """As phases report it to ``Progress.update``, or as `metric_values` derives it."""
    description: str
    unit: str
    """As Grafana calls it."""
    panel: str
    """Title of the panel that draws it; metrics with the same title share one."""
    of_the_moment: bool = False
    """Whether it means nothing once its phase is over; it is then recorded as 0, as Ray keeps the last value."""
    labels: tuple[str, ...] = ()
    """Beside `TAGS`, of a number that there are several of; reported as a tree with a level for each."""

    @property
    def name(self) -> str:
        """What it is called in Ray."""
        return PREFIX + self.key

    @property
    def exported_name(self) -> str:
        """What it is called in Prometheus."""
        return EXPORTED_PREFIX + self.key


METRICS = (
    Metric("running", "1 while this phase is under way", "bool", "Phase", of_the_moment=True),
    Metric("last_sign", "When the phase last reported (seconds since 1970)", "dateTimeFromNow", "Last sign of life"),
    Metric("elapsed_s", "How long this phase has taken, or took (seconds)", "s", "Time taken"),
    Metric("eta_s", "Expected time to the end of this phase (seconds)", "s", "Time left", of_the_moment=True),
    Metric("run_eta_s", "Expected time to the end of the run (seconds)", "s", "Time left", of_the_moment=True),
    Metric("done", "What the phase has done, in its own unit: rows, steps, students", "short", "Done, of total"),
    Metric("total", "What the phase has to do, in the same unit", "short", "Done, of total"),
    Metric("backlog", "What the phase still has to do, in the same unit", "short", "Backlog"),
    Metric("accepted", "Rows accepted", "short", "Rows"),
    Metric("rejected", "Rows rejected, which stay in the table with their reason", "short", "Rows"),
    Metric("failed", "Rows that no replica could make", "short", "Rows"),
    Metric(
        "teacher_rows",
        "Rows of each teacher so far, by what became of them",
        "short",
        "Rows by teacher",
        labels=("teacher", "state"),
    ),
    Metric("tokens_per_s", "Tokens of the teacher or into the student (tokens/s)", "short", "Tokens/s", True),
    Metric("loss", "Mean loss of a step's loss tokens (nats)", "short", "Loss"),
    Metric("learning_rate", "Learning rate of the student's optimiser", "sci", "Learning rate"),
    Metric("cost_usd", "Spent by all commands of the run so far (US dollars)", "currencyUSD", "Cost"),
    Metric("mfu", "Operations that the mathematics needs, as a part of what the devices can do", "percentunit", "MFU"),
)


def metric_values(state: Mapping[str, Any], eta_s: float | None) -> dict[str, float]:
    """The listed numbers of a phase's progress, by key; those that it does not have are left out."""
    derived: dict[str, float | None] = {"running": 1.0, "last_sign": state["updated"], "eta_s": eta_s}
    if eta_s is not None and state.get("later_s") is not None:
        derived["run_eta_s"] = eta_s + state["later_s"]
    derived["elapsed_s"] = state["updated"] - state["entered"]
    if state["total"]:
        derived |= {"done": state["done"], "total": state["total"], "backlog": state["total"] - state["done"]}
    known = derived | state["numbers"]
    alone = [metric.key for metric in METRICS if not metric.labels]
    return {key: float(value) for key in alone if (value := known.get(key)) is not None}


def closing_values(values: Mapping[str, float]) -> dict[str, float]:
    """What is recorded of a phase when it is over: numbers of the moment go to 0, the others stay."""
    momentary = {metric.key for metric in METRICS if metric.of_the_moment}
    return {key: 0.0 if key in momentary else value for key, value in values.items()}


class MetricsExporter:
    """Hands a run's numbers to Ray's metrics; does nothing while this process is in no cluster."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._phase = ""
        self._values: dict[str, float] = {}
        self._gauges: dict[str, Any] = {}

    def record(self, state: Mapping[str, Any], eta_s: float | None) -> None:
        """Record a phase's numbers, and close the phase before when this is another."""
        if not _in_cluster():
            return
        if state["phase"] != self._phase:
            self.close()
        self._phase, self._values = state["phase"], metric_values(state, eta_s)
        self._set(self._values)
        for teacher, states in state["teacher_rows"].items():
            for name, rows in states.items():
                self._gauge("teacher_rows").set(rows, self._tags() | {"teacher": teacher, "state": name})

    def close(self) -> None:
        """Record that the phase is over."""
        if self._values and _in_cluster():
            now = time.time()
            elapsed_s = self._values["elapsed_s"] + now - self._values["last_sign"]
            self._set(closing_values(self._values) | {"last_sign": now, "elapsed_s": elapsed_s})
        self._values = {}

    def _set(self, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            self._gauge(key).set(value, self._tags())

    def _gauge(self, key: str) -> Any:
        from ray.util.metrics import Gauge  # loaded already, as this process is in a cluster

        if key not in self._gauges:
            [metric] = [each for each in METRICS if each.key == key]
            self._gauges[key] = Gauge(metric.name, metric.description, (*TAGS, *metric.labels))
        return self._gauges[key]

    def _tags(self) -> dict[str, str]:
        return {"run": self._run, "phase": self._phase}


def _in_cluster() -> bool:
    # A command that needs no cluster must not pay for Ray's import.
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())
