"""From the runs of the arms to the lines of the table."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.statistics import median_interval, paired_ratio
from benchmarks.training.goals import Line
from benchmarks.training.throughput import Arms, Run, prepare
from benchmarks.training.workload import Workload


def compare_arms(runs: dict[str, list[Run]]) -> list[Line]:
    """Return the lines of ours, under torchrun, against every other arm, and what it waited for its data."""
    lines = []
    ours = runs.get("torchrun", [])
    for name, theirs in runs.items():
        if name == "torchrun" or not ours or not theirs:
            continue
        same_rounds = ours[: len(theirs)]
        pair = (theirs, same_rounds) if name == "ray-train" else (same_rounds, theirs)
        ratio = paired_ratio(*([run.tokens_per_s for run in side] for side in pair))
        cpu = paired_ratio(*([run.cpu_s_per_1000 for run in side] for side in reversed(pair)))
        lines.append(Line(name, ratio, f"by CPU-seconds {cpu.median:.3f} [{cpu.low:.3f}, {cpu.high:.3f}]"))
    if ours:
        lines.append(Line("data-wait", median_interval([run.data_wait_s / run.seconds for run in ours])))
    return lines


def format_runs(runs: dict[str, list[Run]]) -> str:
    """Return each arm's own medians."""
    head = f"{'arm':<12} {'loss tokens/s':>14} {'CPU-s/1k tokens':>16} {'runs':>5}"
    rows = [
        f"{name:<12} {median(run.tokens_per_s for run in each):>14,.0f} "
        f"{median(run.cpu_s_per_1000 for run in each):>16.3f} {len(each):>5}"
        for name, each in runs.items()
        if each
    ]
    return "\n".join([head, *rows])


def measure_curve(arms: Arms, workload: Workload, directory: Path) -> list[Line]:
    """Return how far the losses of ours and of the bare loop are apart, from the same weights on the same tensors."""
    prepared = prepare(workload, directory / "curve")
    runs = [arms.run(name, prepared.order(directory / f"curve-{name}")) for name in ("torchrun", "bare")]
    losses = [run.losses for run in runs if run is not None]
    if len(losses) < len(runs):
        return []
    value = largest_difference(*losses)
    note = f"{workload.num_steps} steps, loss {losses[0][0]:.2f} to {losses[0][-1]:.2f}"
    return [Line("curve", median_interval([value]), note)]


def largest_difference(first: Sequence[float | None], second: Sequence[float | None]) -> float:
    """Return the largest absolute difference of two curves, infinity when one is shorter or has a hole."""
    if len(first) != len(second) or None in (*first, *second):
        return float("inf")
    return max(abs(one - other) for one, other in zip(first, second, strict=True))  # type: ignore[operator]
