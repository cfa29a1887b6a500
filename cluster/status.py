"""``stillhouse status``: what a running or past run shows of itself, read from its directory alone."""

import sys
import time
from typing import Any

from cluster.progress import render_line
from cluster.run_dir import PHASES, RunDir
from configs.errors import UserError
from configs.schema import RunConfig

WATCH_EVERY_S = 1.0
STALE_S = 30.0  # a live run writes its progress every second; after this long it is taken for dead


def show_status(config: RunConfig, *, watch: bool) -> None:
    """Print the status once, or again and again until the run has ended.

    Raises:
        UserError: there is no such run.
    """
    run_dir = RunDir.of(config)
    while True:
        lines = status_lines(run_dir)
        print("\n".join(lines), flush=True)
        if not watch or not is_running(run_dir):
            return
        time.sleep(WATCH_EVERY_S)
        if sys.stdout.isatty():
            print(f"\x1b[{len(lines)}A\x1b[J", end="")  # the next print takes this one's place


def status_lines(run_dir: RunDir) -> list[str]:
    """The run's phases, done and under way, and its ledger as of now."""
    state = run_dir.read_json("progress.json")
    if state is None:
        raise UserError(f"there is no run in {run_dir.root}; start it with `stillhouse run RECIPE`")
    running = is_running(run_dir)
    age = time.time() - state["updated"]
    lines = [f"{state['run']}: {'running' if running else 'not running'} ({run_dir.root}, last sign {age:.0f} s ago)"]
    if seconds := _phase_seconds(run_dir):
        lines.append("done      " + ", ".join(f"{phase} {value:.0f} s" for phase, value in seconds.items()))
    for each in filter(None, (state, state.get("beside"))):
        lines.append(f"{'now' if running else 'last':<9} {render_line(each, each['eta_s'] if running else None)}")
    lines += [f"{name:<9} {_in_words(counts)}" for name, counts in _teachers(run_dir).items()]
    if (ledger := _ledger(run_dir)) is not None:
        states = {key: ledger[key] for key in ("accepted", "rejected", "failed", "pending")}
        lines.append(f"rows      {ledger['planned']:,} planned = {_in_words(states)}")
    return lines


def is_running(run_dir: RunDir) -> bool:
    """Whether the run has given a sign of life lately and has not ended."""
    state: dict[str, Any] | None = run_dir.read_json("progress.json")
    return state is not None and not state["ended"] and time.time() - state["written"] < STALE_S


def _phase_seconds(run_dir: RunDir) -> dict[str, float]:
    records = {phase: run_dir.phase_record(phase) for phase in PHASES}
    return {phase: record["seconds"] for phase, record in records.items() if record is not None}


def _teachers(run_dir: RunDir) -> dict[str, dict[str, int]]:
    """Rows so far of each of several teachers; nothing where there is one, whose rows are the ledger's."""
    from services.dataset import read_rows_by_teacher

    if run_dir.phase_record("plan") is None:
        return {}
    counts = read_rows_by_teacher(run_dir.completions_uri)
    return counts if len(counts) > 1 else {}


def _in_words(counts: dict[str, int]) -> str:
    return " + ".join(f"{number:,} {state}" for state, number in counts.items())


def _ledger(run_dir: RunDir) -> dict[str, int] | None:
    from services.dataset import read_ledger

    plan = run_dir.phase_record("plan")
    return None if plan is None else read_ledger(run_dir.completions_uri, plan["rows"]).to_dict()
