"""What every phase is given: configuration, run directory, progress, and the cluster, started when first needed."""

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock
from typing import Any

from cluster.budget import Budget, Rate, cluster_rate
from cluster.limits import UNTOLD
from cluster.progress import Progress
from cluster.run_dir import RunDir
from cluster.session import Session, ray_session
from configs.prices import load_prices
from configs.schema import RunConfig


class RunContext:
    """Owns the session; close it (it is a context manager) to end what the command started."""

    def __init__(self, config: RunConfig, run_dir: RunDir, progress: Progress) -> None:
        self.config = config
        self.run_dir = run_dir
        self.progress = progress
        self._exit = ExitStack()
        self._terms_s: dict[str, float] = {}
        self._terms_lock = Lock()
        self._session: Session | None = None
        self.prices = load_prices(config.cluster.prices)
        self.budget = Budget(config.budget, run_dir, self._rate)

    def __enter__(self) -> "RunContext":
        return self

    def __exit__(self, *error: Any) -> None:
        self.budget.close()
        self._exit.__exit__(*error)

    @property
    def has_session(self) -> bool:
        """Whether the command has needed a cluster so far."""
        return self._session is not None

    @property
    def session(self) -> Session:
        """The cluster; the first use starts or joins it."""
        if self._session is None:
            self.progress.update(detail="starting Ray")
            self._session = self._exit.enter_context(
                ray_session(self.config.cluster, self.config.deadlines, self.run_dir)
            )
            self.progress.update(detail="")
            if self._session.limits() is None:
                self.progress.say(UNTOLD)
            self.budget.spent(now=True)  # the clock starts
        return self._session

    def beside(self, progress: Progress) -> "RunContext":
        """The same run for a phase on another thread, with a display of its own; the session must be there."""
        twin = copy.copy(self)
        twin.progress = progress
        return twin

    def _rate(self) -> Rate | None:
        return None if self._session is None else cluster_rate(self._session.nodes(), self.prices)

    @contextmanager
    def terms_work(self, name: str) -> Iterator[None]:
        """What licences and terms cost: the time within is kept by name, for the record of the next finished phase."""
        started = time.monotonic()
        try:
            yield
        finally:
            with self._terms_lock:  # phases side by side have a thread each
                self._terms_s[name] = self._terms_s.get(name, 0.0) + time.monotonic() - started

    def finish(self, phase: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Run a phase's work, timed, and record what it returns: from then on the phase is done."""
        started = time.monotonic()
        with self.progress.phase(phase):
            record = {**work(), "seconds": round(time.monotonic() - started, 3)}
        with self._terms_lock:
            terms_s = {name: round(seconds, 4) for name, seconds in self._terms_s.items()}
            self._terms_s.clear()  # in place: a phase beside this one has the same
        if terms_s:
            record["terms_s"] = terms_s
        self.run_dir.write_json(f"phases/{phase}.json", record)
        return record
