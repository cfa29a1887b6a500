"""The driver's side of an arm's process: start, orders with deadlines, CPU time of its whole tree, and its end."""

import json
import os
import selectors
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from benchmarks.generation.arm import ROOT, Order
from benchmarks.generation.arms import RUN_S, START_S, ArmSettings
from benchmarks.generation.engine import Cores

SAMPLE_S = 1.0  # what a process uses between its last sample and its end is not counted
END_S = 30.0
LOG_LINES = 30


class ArmFailed(RuntimeError):
    """An arm ended or was silent for too long; carries the end of its log."""


class ArmProcess:
    """Owns one child and all its descendants."""

    def __init__(self, name: str, settings: ArmSettings, cores: Cores) -> None:
        self.name = name
        self._log_path = settings.directory / "arm.log"
        told = {
            "name": name,
            "settings": asdict(settings) | {"directory": str(settings.directory)},
            "engine_core": cores.engine,
            "other_cores": sorted(cores.others),
        }
        with open(self._log_path, "wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.generation.arm", json.dumps(told)],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        self._cpu = TreeCpu(self._process.pid)
        self._buffer = b""
        self._opened_s: float | None = None
        self._started = time.monotonic()

    @property
    def directory(self) -> Path:
        return self._log_path.parent

    def wait_until_open(self) -> None:
        """Wait for the engine and all before it; some arms start their engine only with the first run."""
        self._answer(START_S, "to be ready")

    def seconds_since_start(self) -> float:
        return time.monotonic() - self._started

    def cpu_s(self) -> float:
        """CPU seconds of the tree so far."""
        return self._cpu.total()

    def run(self, order: Order, deadline_s: float = RUN_S) -> dict[str, Any]:
        """The answer to an order, with ``cpu_s``, the CPU seconds of the process tree meanwhile."""
        assert self._process.stdin is not None
        before = self.cpu_s()
        try:
            self._process.stdin.write(json.dumps(asdict(order)).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise ArmFailed(f"{self.name} has ended\n{self._log_end()}") from None
        answer = self._answer(deadline_s, f"to run {order.num_rows} rows of {order.workload}")
        return answer | {"cpu_s": self.cpu_s() - before}

    def confine(self, cores: frozenset[int], engine_threads: set[int]) -> None:
        """Keep every thread of the tree but the engines' on ``cores``; what they start inherits it."""
        root = psutil.Process(self._process.pid)
        for process in (root, *root.children(recursive=True)):
            with suppress(psutil.Error):
                for thread in process.threads():
                    if thread.id not in engine_threads:
                        with suppress(ProcessLookupError):
                            os.sched_setaffinity(thread.id, cores)

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

    def _answer(self, deadline_s: float, what: str) -> dict[str, Any]:
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
