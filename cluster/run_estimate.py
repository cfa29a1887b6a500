"""A run's estimate: kept once its rows are planned, corrected while it goes, held against what then happened."""

from dataclasses import asdict, replace
from typing import Any

from deltalake import DeltaTable

from cluster.calibration import Calibration, load_calibration
from cluster.context import RunContext
from cluster.estimate import read_shapes
from cluster.forecast import Lengths, Work, estimate_phases, expected_lengths, overlapped_s
from cluster.phases.plan import evaluation_uris, planned_rows
from cluster.run_dir import PHASES
from cluster.usage import Usage, sum_usd
from configs.schema import ONLY_TEACHER
from services.plan import read_plan, read_shard
from services.table import shard_files

FILE = "estimate.json"


def keep_estimate(ctx: RunContext) -> dict[str, Any]:
    """Write what the phases are expected to take, unless it is there for as many rows."""
    rows = planned_rows(ctx).num_rows
    kept: dict[str, Any] | None = ctx.run_dir.read_json(FILE)
    if kept is not None and kept["rows"] == rows:
        return kept
    measured = load_calibration(ctx.config)
    work = planned_work(ctx, measured)
    phases = estimate_phases(ctx.config, ctx.prices, read_shapes(ctx.config), work, measured)
    estimate = {
        "rows": rows,
        "calibrated_at": None if measured is None else measured.measured_at,
        "phases": [asdict(each) for each in phases],
        "overlapped_s": overlapped_s(ctx.config, work, phases),
    }
    ctx.run_dir.write_json(FILE, estimate)
    words = ", ".join(f"{each.phase} {each.seconds:,.0f} s" for each in phases)
    ctx.progress.say(f"plan: expected {words or 'times are not known'}")
    return estimate


def planned_work(ctx: RunContext, measured: Calibration | None) -> Work:
    """What there is to do by the tables; the prompts' length is that of the first shard."""
    config, uri = ctx.config, ctx.run_dir.prompts_uri
    files = list(shard_files(DeltaTable(uri)))
    first = read_shard(uri, files[0].path).column("prompt").to_pylist()
    characters = sum(map(len, first)) / len(first)
    prompts = {
        name: sum(file.num_rows for file in files if (file.teacher or ONLY_TEACHER) == name) for name in config.pool
    }
    record = ctx.run_dir.phase_record("make_teacher")
    return Work(
        prompts=prompts,
        lengths={name: expected_lengths(config, name, characters, measured) for name in config.pool},
        problems=0 if config.evaluation is None else read_plan(evaluation_uris(ctx)[0], 1).num_rows,
        makes_teacher=record is not None and not record["cached"],
    )


class TimeLeft:
    """Seconds that the phases after the one under way will take, by what the run has seen so far.

    Models and tables are read once, here: `after` is asked with every shard.
    """

    def __init__(self, ctx: RunContext) -> None:
        self._config, self._prices, self._shapes = ctx.config, ctx.prices, read_shapes(ctx.config)
        self._measured = load_calibration(ctx.config)
        self._work = planned_work(ctx, self._measured)

    def after(self, phase: str, written: dict[str, float] | None = None) -> float:
        """Of all that is known; ``written`` are mean completion lengths of this run (tokens), by teacher."""
        lengths = {
            name: Lengths(each.prompt, (written or {}).get(name, each.completion))
            for name, each in self._work.lengths.items()
        }
        work = replace(self._work, lengths=lengths)
        later = PHASES[PHASES.index(phase) + 1 :]
        phases = estimate_phases(self._config, self._prices, self._shapes, work, self._measured)
        common_s = overlapped_s(self._config, work, phases) if phase == "generate" else 0.0
        return sum(each.seconds for each in phases if each.phase in later) - common_s


def compare_estimate(
    estimate: dict[str, Any] | None, seconds: dict[str, float], usage: list[Usage], overlapped_s: float = 0.0
) -> dict[str, Any] | None:
    """The section ``estimate`` of the report: each phase that was estimated, and those together.

    ``overlapped_s`` are the seconds that two of them had in common.
    """
    if estimate is None:
        return None
    lines = [_compare(each, seconds[each["phase"]], usage) for each in estimate["phases"] if each["phase"] in seconds]
    if not lines:
        return None
    in_common = {"estimated_s": estimate.get("overlapped_s", 0.0), "actual_s": overlapped_s}
    total = {
        key: None
        if any(line[key] is None for line in lines)
        else sum(line[key] for line in lines) - in_common.get(key, 0)
        for key in ("estimated_s", "actual_s", "estimated_usd", "actual_usd")
    }
    return {
        "calibrated_at": estimate["calibrated_at"],
        "phases": lines,
        "total": {**total, **_ratios(total)},
    }


def _compare(estimated: dict[str, Any], actual_s: float, usage: list[Usage]) -> dict[str, Any]:
    line: dict[str, Any] = {
        "phase": estimated["phase"],
        "estimated_s": round(estimated["seconds"], 3),
        "actual_s": actual_s,
        "estimated_usd": estimated["usd"],
        "actual_usd": sum_usd([use for use in usage if use.phase == estimated["phase"]]),
    }
    return {**line, **_ratios(line)}


def _ratios(line: dict[str, Any]) -> dict[str, float | None]:
    return {
        "ratio": _ratio(line["estimated_s"], line["actual_s"]),
        "usd_ratio": _ratio(line["estimated_usd"], line["actual_usd"]),
    }


def _ratio(estimated: float | None, actual: float | None) -> float | None:
    return None if estimated is None or not actual else round(estimated / actual, 3)


def estimate_lines(estimate: dict[str, Any]) -> list[str]:
    """Estimated against actual in words, for terminal and page."""
    total = estimate["total"]
    by = f"as calibrated at {estimate['calibrated_at']}" if estimate["calibrated_at"] else "by formula, not calibrated"
    parts = [
        f"{each['phase']} {each['estimated_s']:,.0f} of {each['actual_s']:,.0f} s ({_shown(each['ratio'])})"
        for each in [*estimate["phases"], {"phase": "together", **total}]
    ]
    lines = [f"{', '.join(parts)}: expected of actual, {by}"]
    if total["estimated_usd"] is not None and total["actual_usd"] is not None:
        usd = f"${total['estimated_usd']:.4g} of ${total['actual_usd']:.4g}"
        lines.append(f"{usd} for these phases ({_shown(total['usd_ratio'])})")
    return lines


def _shown(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}"
