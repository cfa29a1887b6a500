"""`vllm serve` on loopback and an asyncio client with a semaphore: what most people run."""

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.request import urlopen

from benchmarks.generation.arms import RUN_S, START_S, ArmSettings, RowDone, Run
from benchmarks.generation.workloads import WorkItem

POLL_S = 0.25
HEALTH_S = 5.0
END_S = 20.0
LOOPBACK = "127.0.0.1"


@contextmanager
def open_http(settings: ArmSettings) -> Iterator["HttpArm"]:
    """The server is a child of this process and ends with the block."""
    port = _free_port()
    # What `vllm serve` runs; the command itself asks for a distribution named vllm, which the CPU build is not.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", settings.model]
    command += ["--host", LOOPBACK, "--port", str(port), "--served-model-name", "bench"]
    command += ["--disable-uvicorn-access-log", "--disable-log-stats", *_to_flags(settings.engine)]
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr)
    try:
        _wait_until_healthy(server, port)
        yield HttpArm(f"http://{LOOPBACK}:{port}/v1/completions", settings.window_rows)
    finally:
        server.terminate()
        try:
            server.wait(END_S)
        except subprocess.TimeoutExpired:
            server.kill()


class HttpArm:
    """One request a row, ``window_rows`` of them at a time."""

    def __init__(self, url: str, window_rows: int) -> None:
        self._url = url
        self._window_rows = window_rows

    def prepare(self, rows: list[WorkItem], number: int, *, reorder: bool = True) -> Run:
        bodies = [
            {
                "model": "bench",
                "prompt": row.token_ids,
                "n": row.n,
                "max_tokens": row.max_tokens,
                "temperature": row.temperature,
                "ignore_eos": True,
                "seed": row.index if row.temperature else None,
            }
            for row in rows
        ]
        return lambda: asyncio.run(self._run(bodies))

    async def _run(self, bodies: list[dict[str, Any]]) -> list[RowDone]:
        import aiohttp

        window = asyncio.Semaphore(self._window_rows)
        connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=RUN_S)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:

            async def ask(index: int, body: dict[str, Any]) -> RowDone:
                async with window, session.post(self._url, json=body) as response:
                    response.raise_for_status()
                    reply = await response.json()
                return RowDone(index, reply["usage"]["completion_tokens"], time.time())

            return list(await asyncio.gather(*(ask(index, body) for index, body in enumerate(bodies))))


def _to_flags(engine: dict[str, Any]) -> list[str]:
    flags = []
    for key, value in engine.items():
        name = key.replace("_", "-")
        flags += [f"--{name}" if value else f"--no-{name}"] if isinstance(value, bool) else [f"--{name}", str(value)]
    return flags


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind((LOOPBACK, 0))
        port: int = sock.getsockname()[1]
        return port


def _wait_until_healthy(server: "subprocess.Popen[bytes]", port: int) -> None:
    give_up_at = time.monotonic() + START_S
    while time.monotonic() < give_up_at:
        if server.poll() is not None:
            raise RuntimeError(f"vllm serve ended with status {server.returncode} before it was ready")
        with suppress(OSError), urlopen(f"http://{LOOPBACK}:{port}/health", timeout=HEALTH_S):
            return
        time.sleep(POLL_S)
    raise TimeoutError(f"vllm serve (process {server.pid} of {os.getpid()}) was not healthy after {START_S:.0f} s")
