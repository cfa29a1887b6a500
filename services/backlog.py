"""Tells a teacher now and then how many rows still wait for it, from which `services.scaling` decides on replicas.

The answer says when a replica has last answered a row: that is how a run sees progress before a shard is finished.
"""

import logging
import math
import threading
import time
from typing import Any

TELL_EVERY_S = 3.0
TRIES = 10  # a replica that loads or is full answers late; then the next report says more than this one

logger = logging.getLogger(__name__)


class BacklogReporter:
    """A thread of the process that runs GENERATE; a context manager. ``teacher`` is a deployment handle.

    A report that does not arrive harms nobody: the next one follows, and without any the number of replicas stays.
    """

    def __init__(self, teacher: Any, rows: int, deadline_s: float | None) -> None:
        self._teacher = teacher
        self._rows = rows
        self.heard_at = -math.inf  # when a replica has last answered a row, as far as is known (`time.monotonic`)
        self._ends_at = None if deadline_s is None else time.monotonic() + deadline_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._tell_often, name="backlog-reports", daemon=True)

    def __enter__(self) -> "BacklogReporter":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=2 * TELL_EVERY_S)  # before whoever uses it takes Ray away

    def take_off(self, rows: int) -> None:
        """Rows that have been committed."""
        self._rows -= rows

    def _tell_often(self) -> None:
        while not self._stop.wait(TELL_EVERY_S):
            self._tell()
        if self._rows <= 0:  # the replicas end with the work, and not only when the application is deleted
            self._tell()

    def _tell(self) -> None:
        from ray.exceptions import RayError
        from ray.serve.exceptions import RayServeException

        seconds_left = None if self._ends_at is None else self._ends_at - time.monotonic()
        response = self._teacher.tell_backlog.remote(self._rows, seconds_left)
        for _ in range(TRIES):
            try:
                idle_s = response.result(timeout_s=TELL_EVERY_S)
                self.heard_at = max(self.heard_at, time.monotonic() - idle_s)
                return
            except TimeoutError:
                if self._stop.is_set():
                    break
            except (RayError, RayServeException) as error:
                logger.debug("the backlog of %d rows was not told: %s", self._rows, error)
                return
        response.cancel()
