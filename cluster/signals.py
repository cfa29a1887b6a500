"""What the program does with signals; light, as the CLI imports it before anything else."""

import signal
import threading
from typing import Any


def interrupt_on_sigterm() -> None:
    """Leave on SIGTERM, which ends a job, as on Ctrl-C: everything is ended and the run can be resumed."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, interrupt)
