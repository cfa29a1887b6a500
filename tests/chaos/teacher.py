"""The echo with an engine in a process of its own, as vLLM's is; a replica whose engine is gone ends itself."""

import os
import subprocess
from collections.abc import AsyncGenerator

from benchmarks.echo import EchoScript, EchoTeacher
from services.generation import GenerateRequest, GenerateResult

ENGINE = "cat"  # reads a pipe that closes with its replica


class EngineTeacher(EchoTeacher):
    """An echo whose replica is of no use without its engine.

    Staying up and raising would not do: Serve asks three times before it replaces a replica, and meanwhile every call
    that comes here would look like one that ends engines.
    """

    def __init__(self, script: EchoScript) -> None:
        super().__init__(script)
        self._engine = subprocess.Popen([ENGINE], stdin=subprocess.PIPE)

    async def generate(self, batch: list[GenerateRequest]) -> AsyncGenerator[list[GenerateResult]]:
        async for results in super().generate(batch):
            self.check_health()
            yield results

    def check_health(self) -> None:
        """What Serve asks for now and then."""
        if self._engine.poll() is not None:
            os._exit(1)
