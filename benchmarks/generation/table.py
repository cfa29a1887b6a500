"""From measured pairs to the printed table and the JSON record."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from benchmarks.generation.comparisons import Comparison, Measure
from benchmarks.generation.statistics import Completion, Phases, cut_phases
from benchmarks.statistics import Interval, paired_ratio

HEADER = (
    f"{'workload':<10} {'ours against':<16} {'tokens/s steady':>16} {'end to end':>14} {'core-s/1k tok':>14}  "
    f"{'steady, ours/arm':<22} {'end to end, ours/arm':<22} {'goal':>6}"
)


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of one arm."""

    seconds: float
    tokens: int
    cpu_s: float
    phases: Phases

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds

    @property
    def cpu_s_per_1000(self) -> float:
        return 1000 * self.cpu_s / self.tokens

    @classmethod
    def from_answer(cls, answer: dict[str, Any]) -> "Sample":
        """From what the arm's process said."""
        completions = [Completion(at_s, tokens) for at_s, tokens in answer["completions"]]
        seconds = answer["ended"] - answer["begun"]
        tokens = sum(each.tokens for each in completions)
        return cls(seconds, tokens, answer["cpu_s"], cut_phases(completions, seconds))


@dataclass(frozen=True, slots=True)
class Outcome:
    """A comparison with its pairs of runs."""

    model: str
    comparison: Comparison
    ours: Sequence[Sample]
    theirs: Sequence[Sample]

    @property
    def steady(self) -> Interval:
        return paired_ratio(
            [each.phases.steady_tokens_per_s for each in self.ours],
            [each.phases.steady_tokens_per_s for each in self.theirs],
        )

    @property
    def end_to_end(self) -> Interval:
        return paired_ratio([each.tokens_per_s for each in self.ours], [each.tokens_per_s for each in self.theirs])

    @property
    def is_met(self) -> bool:
        """The lower end of the interval reaches the goal."""
        ratio = self.steady if self.comparison.measure is Measure.STEADY else self.end_to_end
        return ratio.low >= self.comparison.goal(self.model)

    def to_line(self) -> str:
        goal = f"≥ {self.comparison.goal(self.model):g} {'met' if self.is_met else 'NOT MET'}"
        return (
            f"{self.comparison.workload:<10} {self.comparison.arm:<16} "
            f"{_both(self.ours, self.theirs, lambda each: each.phases.steady_tokens_per_s):>16} "
            f"{_both(self.ours, self.theirs, lambda each: each.tokens_per_s):>14} "
            f"{_both(self.ours, self.theirs, lambda each: each.cpu_s_per_1000, '.3f'):>14}  "
            f"{_interval(self.steady):<22} {_interval(self.end_to_end):<22} {goal}"
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "comparison": asdict(self.comparison),
            "goal": self.comparison.goal(self.model),
            "met": self.is_met,
            "pairs": len(self.ours),
            "steady": asdict(self.steady),
            "end_to_end": asdict(self.end_to_end),
            "ours": [asdict(each) for each in self.ours],
            "theirs": [asdict(each) for each in self.theirs],
        }


def format_table(outcomes: Sequence[Outcome]) -> str:
    """Medians of ours and of the arm, and the ratios with their 95 % intervals."""
    return "\n".join([HEADER, *(each.to_line() for each in outcomes)])


def _both(ours: Sequence[Sample], theirs: Sequence[Sample], value: Any, form: str = ",.0f") -> str:
    first, second = median(map(value, ours)), median(map(value, theirs))
    return f"{first:{form}} / {second:{form}}"


def _interval(ratio: Interval) -> str:
    return f"{ratio.median:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"
