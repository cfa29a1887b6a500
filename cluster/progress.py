"""What a run shows of itself: a live display on a terminal, a line every few seconds in a log, a file for ``status``.

Phases report plain numbers; nothing is read back from logs. On a cluster the same numbers are Ray's metrics.
"""

import sys
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

    ``later_s`` are the seconds that the phases after it are expected to take.
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
    def phase(self, name: str) -> Iterator[None]:
        """Report a phase; prints how long it took when it ends well."""
        self._state = ProgressState(self._state.run, phase=name)
        self._show(now=True)
        started = time.monotonic()
        try:
            yield
        finally:
            self._metrics.close()
        self.say(f"{name}: done in {time.monotonic() - started:.1f} s")

    @property
    def label(self) -> str:
        """What the phase under way is counting, as `expect` was told."""
        return self._state.label

    def expect(self, total: int, unit: str, done: int = 0, label: str = "") -> None:
        """Start counting towards ``total``."""
        state = self._state
        state.label = label
        state.total, state.unit, state.done, state.done_at_start = total, unit, done, done
        state.phase_started = time.time()

    def update(
        self,
        done: int | None = None,
        detail: str | None = None,
        later_s: float | None = None,
        **numbers: float | None,
    ) -> None:
        """Report the newest numbers, those that are known; shown now or with the next line."""
        state = self._state
        if done is not None:
            state.done = done
        if detail is not None:
            state.detail = detail
        if later_s is not None:
            state.later_s = later_s
        state.numbers.update({name: value for name, value in numbers.items() if value is not None})
        state.updated = time.time()
        self._show()

    def say(self, text: str) -> None:
        """Print a line that stays."""
        if self._live is not None:
            self._live.console.print(text, highlight=False, markup=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def _show(self, *, now: bool = False) -> None:
        clock = time.monotonic()
        if now or clock - self._file_at >= FILE_EVERY_S:
            self._file_at = clock
            self._write_file()
            self._metrics.record(asdict(self._state), self._state.eta_s)
        line = render_line(asdict(self._state), self._state.eta_s)
        if self._live is not None:
            self._live.update(_render_live(self._state, line))
        elif line != self._line and (now or clock - self._line_at >= LINE_EVERY_S):
            self._line_at, self._line = clock, line
            print(line, file=sys.stderr, flush=True)

    def _write_file(self) -> None:
        state = {**asdict(self._state), "eta_s": self._state.eta_s, "ended": self._ended, "written": time.time()}
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


def _render_live(state: ProgressState, line: str) -> Any:
    from rich.columns import Columns
    from rich.progress_bar import ProgressBar
    from rich.spinner import Spinner

    parts: list[Any] = [Spinner("dots")]
    if state.total:
        parts.append(ProgressBar(total=state.total, completed=state.done, width=24))
    return Columns([*parts, line])
