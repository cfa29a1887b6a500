"""The echo with an engine in a process of its own, as vLLM's is; a replica whose engine is gone ends itself."""

import subprocess
import time
from collections.abc import AsyncGenerator

from benchmarks.echo import EchoScript, EchoTeacher
from services.generation import GenerateRequest, GenerateResult
from services.replica import end_replica

ENGINE = "cat"  # reads a pipe that closes with its replica
LINGERS_S = 4.0


class EngineDeadError(Exception):
    """Of vLLM's name."""


class EngineTeacher(EchoTeacher):
    """An echo whose replica is of no use without its engine, and ends as a real one does."""

    def __init__(self, script: EchoScript) -> None:
        super().__init__(script)
        self._engine = subprocess.Popen([ENGINE], stdin=subprocess.PIPE)

    async def generate(self, batch: list[GenerateRequest]) -> AsyncGenerator[list[GenerateResult]]:
        self._look_after_engine()
        async for results in super().generate(batch):
            self._look_after_engine()
            yield results

    def check_health(self) -> None:
        """What Serve asks for now and then."""
        self._look_after_engine()

    def _look_after_engine(self) -> None:
        if self._engine.poll() is not None:
            end_replica(EngineDeadError("the engine's process is gone"))


class LingeringTeacher(EngineTeacher):
    """One that does not end itself: it raises, and Serve takes some seconds to find out."""

    _dead_since: float | None = None

    def check_health(self) -> None:
        """Raises late."""
        if self._dead_since is not None and time.monotonic() > self._dead_since + LINGERS_S:
            raise EngineDeadError("the engine's process is gone")

    def _look_after_engine(self) -> None:
        if self._engine.poll() is not None:
            self._dead_since = self._dead_since or time.monotonic()
            raise EngineDeadError("the engine's process is gone")
