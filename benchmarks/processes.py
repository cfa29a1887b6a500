"""Processes that measure, from the side of who asks them.

One that runs an arm of a comparison answers with one JSON line at a time on its standard output, and all else that it
prints goes to its log; one that measures once and for itself ends with such a line.
"""

import json
import os
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
SAMPLE_S = 1.0  # what a process uses between its last sample and its end is not counted
END_S = 30.0
LOG_LINES = 60  # torchrun puts as many after the error itself


def measure_in_child(
    program: str, argument: str, deadline_s: float, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """What ``python -m benchmarks PROGRAM --child ARGUMENT`` prints as its last line, a JSON object.

    Raises:
        RuntimeError: it failed; has the end of what it said.
        subprocess.TimeoutExpired: it took longer than ``deadline_s``.
    """
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", program, "--child", argument],
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=deadline_s,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{program} of {argument} failed: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


class ArmFailed(RuntimeError):
    """An arm ended or was silent for too long; carries the end of its log."""


class ChildProcess:
    """Owns one child, started in the repository's root, and all its descendants."""

    def __init__(
        self, name: str, command: Sequence[str], log_path: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self._log_path = log_path
        with open(log_path, "wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=None if environment is None else {**os.environ, **environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        self._cpu = TreeCpu(self._process.pid)
        self._buffer = b""
        self._started = time.monotonic()

    @property
    def pid(self) -> int:
        return self._process.pid

    def seconds_since_start(self) -> float:
        return time.monotonic() - self._started

    def cpu_s(self) -> float:
        """CPU seconds of the tree so far."""
        return self._cpu.total()

    def ask(self, question: Mapping[str, Any], deadline_s: float, what: str) -> dict[str, Any]:
        """Write ``question`` and return the answer; ``what`` finishes the sentence "took too long ..."."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise ArmFailed(f"{self.name} has ended\n{self._log_end()}") from None
        return self.wait_for_answer(deadline_s, what)

    def wait_for_answer(self, deadline_s: float, what: str) -> dict[str, Any]:
        """Return the next line; `ArmFailed` when it does not come within the deadline."""
        assert self._process.stdout is not None
        descriptor, give_up_at = self._process.stdout.fileno(), time.monotonic() + deadline_s
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                if not selector.select(max(0.0, give_up_at - time.monotonic())):
                    raise ArmFailed(f"{self.name} took more than {deadline_s:.0f} s {what}\n{self._log_end()}")
                chunk = os.read(descriptor, 1 << 20)
                if not chunk:
                    raise ArmFailed(f"{self.name} ended while it was asked {what}\n{self._log_end()}")
                self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def stop(self) -> None:
        """Let it end by itself, then end what is left of its tree, by process id."""
        with suppress(psutil.NoSuchProcess):
            tree = [psutil.Process(self._process.pid), *psutil.Process(self._process.pid).children(recursive=True)]
            assert self._process.stdin is not None
            with suppress(BrokenPipeError):
                self._process.stdin.close()
            _, alive = psutil.wait_procs(tree, timeout=END_S)
            for process in alive:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(END_S)
        self._cpu.stop()

    def _log_end(self) -> str:
        return "\n".join(self._log_path.read_text(errors="replace").splitlines()[-LOG_LINES:])


class TreeCpu:
    """CPU seconds of a process and all its descendants, ended ones included, by looking every now and then."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._seen: dict[tuple[int, float], float] = {}
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, name=f"cpu-of-{pid}", daemon=True)
        self._thread.start()

    def total(self) -> float:
        """Up to this moment."""
        with self._lock:
            self._look()
            return sum(self._seen.values())

    def stop(self) -> None:
        """End the thread."""
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._done.wait(SAMPLE_S):
            with self._lock:
                self._look()

    def _look(self) -> None:
        with suppress(psutil.NoSuchProcess):
            root = psutil.Process(self._pid)
            for process in (root, *root.children(recursive=True)):
                with suppress(psutil.Error):
                    times = process.cpu_times()
                    self._seen[process.pid, process.create_time()] = times.user + times.system
