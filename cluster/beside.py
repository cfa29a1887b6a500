"""Runs work on a thread beside the main one; what ends one of them ends the other."""

import signal
import threading
from collections.abc import Callable

from cluster.signals import interrupt_on_sigterm

WAIT_S = 0.5  # a wait without an end would hear of no signal


class Beside:
    """``work`` is given an event and ends soon once that is set, which the end of `run` does."""

    def __init__(self, work: Callable[[threading.Event], None], stop_deadline_s: float) -> None:
        self._work, self._stop_deadline_s = work, stop_deadline_s
        self._is_stopped = threading.Event()
        self._error: Exception | None = None
        # A daemon, as it may wait for a cluster that is being ended.
        self._thread = threading.Thread(target=self._run, name="beside", daemon=True)

    def run(self, block: Callable[[], None]) -> None:
        """Start the work and call ``block`` on this thread, the main one, which is what signals reach.

        An error of the work interrupts the block, wherever that waits, and is raised here.
        """
        interrupt_on_sigterm()
        try:
            self._thread.start()
            block()
        except KeyboardInterrupt:
            self._stop()
            if self._error is not None:
                raise self._error from None
            raise
        finally:
            self._stop()

    def wait(self) -> None:
        """Return once the work is done; called by the block. Raises what the work raised."""
        while self._thread.is_alive():
            self._thread.join(WAIT_S)
        if self._error is not None:
            raise self._error

    def _stop(self) -> None:
        self._is_stopped.set()
        self._thread.join(self._stop_deadline_s)

    def _run(self) -> None:
        try:
            self._work(self._is_stopped)
        except Exception as error:  # raised again on the main thread
            self._error = error
            if not self._is_stopped.is_set():
                main = threading.main_thread().ident
                assert main is not None
                signal.pthread_kill(main, signal.SIGTERM)
