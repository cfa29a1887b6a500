"""What a run shows of itself: a live display on a terminal, a line every few seconds in a log, a file for ``status``.

Phases report plain numbers; nothing is read back from logs. On a cluster the same numbers are Ray's metrics. Two phases
may report side by side, each from threads of its own.
"""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from cluster.metrics import MetricsExporter
from cluster.run_dir import RunDir

LINE_EVERY_S = 5.0
FILE_EVERY_S = 1.0


@dataclass(slots=True)
class ProgressState:
    """The numbers of the phase under way, which has run since ``entered``; ``done`` of ``total`` gives the ETA.

    ``later_s`` are the seconds that the phases after it are expected to take. ``teacher_rows`` are each teacher's rows
    so far, such as ``{"small": {"accepted": 7, "rejected": 1, "failed": 0}}``.
    """

    run: str
    phase: str = "starting"
    detail: str = ""
    unit: str = ""
    label: str = ""
    done: int = 0
    total: int = 0
    entered: float = field(default_factory=time.time)
    phase_started: float = field(default_factory=time.time)
    done_at_start: int = 0
    updated: float = field(default_factory=time.time)
    numbers: dict[str, float | int] = field(default_factory=dict)
    later_s: float | None = None
    teacher_rows: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def eta_s(self) -> float | None:
        made = self.done - self.done_at_start
        if made <= 0 or self.total <= self.done:
            return None
        return (time.time() - self.phase_started) / made * (self.total - self.done)


class Progress:
    """Takes reports from the phases and shows them. Use as a context manager: it owns the terminal's live area."""

    def __init__(self, run: str, run_dir: RunDir) -> None:
        self._state = ProgressState(run)
        self._run_dir = run_dir
        self._metrics = MetricsExporter(run)
        self._is_in_phase = False
        self._shown_by, self._other = self, self
        self._lock = threading.RLock()
        self._live: Any = None
        self._line_at = self._file_at = 0.0
        self._line = ""
        self._ended = False

    def __enter__(self) -> "Progress":
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(stderr=True), refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
        self._ended = True
        self._write_file()

    @contextmanager
    def beside(self) -> Iterator["Progress"]:
        """Show a second phase's reports, those of what this yields, together with the first one's."""
        other = Progress(self._state.run, self._run_dir)
        other._shown_by, other._lock, self._other = self, self._lock, other
        try:
            yield other
        finally:
            self._other = self

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Report a phase; prints how long it took when it ends well."""
        with self._lock:
            self._state, self._is_in_phase = ProgressState(self._state.run, phase=name), True
            self._shown_by._show(now=True)
        started = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                self._is_in_phase = False
                self._metrics.close()
        self.say(f"{name}: done in {time.monotonic() - started:.1f} s")

    @property
    def label(self) -> str:
        """What the phase under way is counting, as `expect` was told."""
        return self._state.label

    def expect(self, total: int, unit: str, done: int = 0, label: str = "") -> None:
        """Start counting towards ``total``."""
        with self._lock:
            state = self._state
            state.label = label
            state.total, state.unit, state.done, state.done_at_start = total, unit, done, done
            state.phase_started = time.time()

    def update(
        self,
        done: int | None = None,
        detail: str | None = None,
        later_s: float | None = None,
        teacher_rows: dict[str, dict[str, int]] | None = None,
        **numbers: float | None,
    ) -> None:
        """Report the newest numbers, those that are known; shown now or with the next line."""
        with self._lock:
            state = self._state
            if done is not None:
                state.done = done
            if detail is not None:
                state.detail = detail
            if later_s is not None:
                state.later_s = later_s
            if teacher_rows is not None:
                # A copy: another thread may write the file while the caller goes on counting.
                state.teacher_rows = {teacher: dict(states) for teacher, states in teacher_rows.items()}
            state.numbers.update({name: value for name, value in numbers.items() if value is not None})
            state.updated = time.time()
            self._shown_by._show()

    def say(self, text: str) -> None:
        """Print a line that stays."""
        live = self._shown_by._live
        if live is not None:
            live.console.print(text, highlight=False, markup=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def _sides(self) -> list["Progress"]:
        """What is under way: this and the phase beside it, or the one of them that goes on alone."""
        sides = [self] if self._other is self else [self, self._other]
        return [side for side in sides if side._is_in_phase] or [self]

    def _show(self, *, now: bool = False) -> None:
        clock, sides = time.monotonic(), self._sides()
        if now or clock - self._file_at >= FILE_EVERY_S:
            self._file_at = clock
            self._write_file()
            for side in sides:
                side._metrics.record(asdict(side._state), side._state.eta_s)
        lines = [render_line(asdict(side._state), side._state.eta_s) for side in sides]
        line = "\n".join(lines)
        if self._live is not None:
            self._live.update(_render_live([side._state for side in sides], lines))
        elif line != self._line and (now or clock - self._line_at >= LINE_EVERY_S):
            self._line_at, self._line = clock, line
            print(line, file=sys.stderr, flush=True)

    def _write_file(self) -> None:
        first, *others = ({**asdict(side._state), "eta_s": side._state.eta_s} for side in self._sides())
        state = {**first, "beside": others[0] if others else None, "ended": self._ended, "written": time.time()}
        self._run_dir.write_json("progress.json", state)


def render_line(state: dict[str, Any], eta_s: float | None) -> str:
    """One line of progress, e.g. ``generate  512/6000 rows (9 %)  accepted 510  tokens/s 4,100  ETA 41 s``."""
    parts = [state["phase"]]
    if state["total"]:
        share = 100 * state["done"] / state["total"]
        parts.append(f"{state['done']:,}/{state['total']:,} {state['unit']} ({share:.0f} %)")
    parts += [f"{name.replace('_', ' ')} {_number(value)}" for name, value in state["numbers"].items()]
    if eta_s is not None:
        later_s = state.get("later_s")
        parts.append(f"ETA {eta_s:.0f} s" + ("" if later_s is None else f", of the run {eta_s + later_s:.0f} s"))
    if state["detail"]:
        parts.append(state["detail"])
    return "  ".join(parts)


def _number(value: float | int) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _render_live(states: list[ProgressState], lines: list[str]) -> Any:
    from rich.columns import Columns
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.spinner import Spinner

    rows = []
    for state, line in zip(states, lines, strict=True):
        parts: list[Any] = [Spinner("dots")]
        if state.total:
            parts.append(ProgressBar(total=state.total, completed=state.done, width=24))
        rows.append(Columns([*parts, line]))
    return Group(*rows)
