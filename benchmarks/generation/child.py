"""The driver's side of an arm's process: its start, orders with deadlines, and the cores it may use."""

import json
import os
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from benchmarks.generation.arm import Order
from benchmarks.generation.arms import RUN_S, START_S, ArmSettings
from benchmarks.generation.engine import Cores
from benchmarks.processes import ChildProcess


class ArmProcess(ChildProcess):
    """Owns one child and all its descendants."""

    def __init__(self, name: str, settings: ArmSettings, cores: Cores) -> None:
        told = {
            "name": name,
            "settings": asdict(settings) | {"directory": str(settings.directory)},
            "engine_core": cores.engine,
            "other_cores": sorted(cores.others),
        }
        command = [sys.executable, "-m", "benchmarks.generation.arm", json.dumps(told)]
        super().__init__(name, command, settings.directory / "arm.log")
        self.directory: Path = settings.directory

    def wait_until_open(self) -> None:
        """Wait for the engine and all before it; some arms start their engine only with the first run."""
        self.wait_for_answer(START_S, "to be ready")

    def run(self, order: Order, deadline_s: float = RUN_S) -> dict[str, Any]:
        """The answer to an order, with ``cpu_s``, the CPU seconds of the process tree meanwhile."""
        before = self.cpu_s()
        answer = self.ask(asdict(order), deadline_s, f"to run {order.num_rows} rows of {order.workload}")
        return answer | {"cpu_s": self.cpu_s() - before}

    def confine(self, cores: frozenset[int], engine_threads: set[int]) -> None:
        """Keep every thread of the tree but the engines' on ``cores``; what they start inherits it."""
        root = psutil.Process(self.pid)
        for process in (root, *root.children(recursive=True)):
            with suppress(psutil.Error):
                for thread in process.threads():
                    if thread.id not in engine_threads:
                        with suppress(ProcessLookupError):
                            os.sched_setaffinity(thread.id, cores)
