"""Which comparisons the table has, and what each should come to."""

from dataclasses import dataclass
from enum import StrEnum

from benchmarks.generation.workloads import Name


class Measure(StrEnum):
    """What of a run is compared: tokens a second, higher is better.

    Steady state, except where `ray.data.llm` hands rows on in waves of whole batches: the slope through them is steeper
    than the engine's own speed. That is so through Serve, whose every run starts its actors anew, as ours its clients,
    and of rows of different lengths. The engine processor's actors are there from the run before.
    """

    STEADY = "steady"
    END_TO_END = "end to end"


@dataclass(frozen=True, slots=True)
class Comparison:
    """``ours`` against ``arm`` on one workload. ``goals`` is by model; a model that is not in it has the 27m goal.

    ``variant`` says what becomes of the rows for the other side when that is ours as well. With a ``model`` it is made
    of that one alone.
    """

    arm: str
    workload: Name
    goals: dict[str, float]
    measure: Measure
    variant: str = "plain"
    model: str | None = None

    @property
    def process(self) -> str:
        """Name of the arm whose process runs the other side."""
        return self.arm if self.variant == "plain" else "ours"

    def goal(self, model: str) -> float:
        return self.goals.get(model, self.goals["27m"])

    def is_of(self, model: str) -> bool:
        """Whether it is made of this model."""
        return self.model in (None, model)

    def seed(self, pair: int, *, is_ours: bool) -> int:
        """Both sides of a pair have the same rows, but not out of one engine: its cache would know them already."""
        return 2 * pair + (not is_ours) if self.process == "ours" else pair


COMPARISONS = (
    Comparison("llm", Name.FIXED, {"27m": 0.97, "4m": 0.95}, Measure.STEADY),
    Comparison("llm", Name.LONG_TAIL, {"27m": 0.95}, Measure.STEADY),
    Comparison("llm", Name.LONG_RUN, {"27m": 0.95}, Measure.STEADY, model="4m"),
    Comparison("llm-chunks", Name.LONG_TAIL, {"27m": 1.3}, Measure.STEADY),
    Comparison("llm-chunks", Name.LONG_RUN, {"27m": 1.3}, Measure.STEADY, model="4m"),
    Comparison("ray-data-engine", Name.FIXED, {"27m": 1.05}, Measure.STEADY),
    Comparison("ray-data-engine", Name.LONG_TAIL, {"27m": 1.05}, Measure.END_TO_END),
    Comparison("ray-data-serve", Name.FIXED, {"27m": 1.5, "4m": 2.0}, Measure.END_TO_END),
    Comparison("http", Name.FIXED, {"27m": 1.2}, Measure.STEADY),
    Comparison("ours-shuffled", Name.PREFIX, {"27m": 1.3}, Measure.STEADY, variant="shuffled"),
    Comparison("ours-duplicates", Name.N4, {"27m": 1.3}, Measure.STEADY, variant="duplicates"),
)
