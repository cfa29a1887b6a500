"""What the table says and what each line should come to."""

from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.statistics import Interval


@dataclass(frozen=True, slots=True)
class Goal:
    """A line of the table: ``bound`` is the least value when ``is_least``, else the largest."""

    what: str
    bound: float
    is_least: bool
    form: str = ".3f"

    def is_met_by(self, value: Interval) -> bool:
        """The whole interval is on the good side."""
        return value.low >= self.bound if self.is_least else value.high <= self.bound


GOALS = {
    "bare": Goal("ours / bare loop, loss tokens/s", 0.98, True),
    "trl-packed": Goal("ours / TRL packed", 1.2, True),
    "trl-padded": Goal("ours / TRL padded", 2.5, True),
    "ray-train": Goal("ours under Ray Train / under torchrun", 0.98, True),
    "data-wait": Goal("data wait, part of step time", 0.01, False, ".5f"),
    "curve": Goal("losses of ours and the bare loop, largest difference (nats)", 1e-4, False, ".1e"),
    "resume": Goal("killed twice and resumed, largest difference of a loss", 0.0, False, ".1e"),
    "elastic": Goal("2 → 1 → 2 workers, largest difference of a loss", 1e-5, False, ".1e"),
    "packing-fill": Goal("packing, part of the room that is filled", 0.997, True, ".5f"),
    "packing-lost": Goal("packing, tokens lost", 0.0, False, ".0f"),
    "packing-speed": Goal("packing, rows/s on one core", 200_000, True, ",.0f"),
    "checkpoint-inflation": Goal("asynchronous checkpoints, longer steps", 0.03, False, ".4f"),
    "checkpoint-blocked": Goal("asynchronous / synchronous checkpoint, time blocked", 0.1, False),
    "memory": Goal("two ranks / one, memory of a rank above the libraries'", 0.6, False),
}


@dataclass(frozen=True, slots=True)
class Line:
    """A measured line; ``note`` is what else there is to know, such as both sides' own figures."""

    name: str
    value: Interval
    note: str = ""

    @property
    def goal(self) -> Goal:
        return GOALS[self.name]

    @property
    def is_met(self) -> bool:
        return self.goal.is_met_by(self.value)

    def to_dict(self) -> dict[str, Any]:
        return {"goal": asdict(self.goal), "met": self.is_met, "note": self.note} | asdict(self.value)


def format_lines(lines: list[Line]) -> str:
    """Return the table: median, 95 % interval, goal, and whether it is met."""
    rows = [("what", "median", "95 % interval", "goal", "", "")]
    for line in lines:
        form, goal, value = line.goal.form, line.goal, line.value
        interval = f"[{value.low:{form}}, {value.high:{form}}]"
        bound = f"{'≥' if goal.is_least else '≤'} {goal.bound:{',' if goal.bound >= 1000 else ''}g}"
        met = "met" if line.is_met else "NOT MET"
        rows.append((goal.what, f"{value.median:{form}}", interval, bound, met, line.note))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = (zip(row, widths, strict=True) for row in rows)
    return "\n".join("  ".join(f"{text:<{width}}" for text, width in row).rstrip() for row in cells)
