"""A gateway in this process: the real admission and HTTP side, before an echo in the teacher's place."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import uvicorn

from configs.gateway import GatewayConfig
from configs.watermark import WatermarkScheme
from services.gateway.admission import KEYS_FILE, Admission, AdmissionSpec, Visit
from services.gateway.app import GatewaySpec, build_app
from services.gateway.audit import default_anchor
from services.gateway.keys import KeyFile, make_key

MODEL = "small"
TERMS = "Be kind."
NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


class Clock:
    """Both clocks, moved by hand."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return NOW + timedelta(seconds=self.seconds)


def make_spec(directory: Path, config: GatewayConfig, terms: str | None = None) -> AdmissionSpec:
    return AdmissionSpec(config, str(directory), str(default_anchor(directory)), MODEL, terms)


def add_key(directory: Path, name: str = "ada", **limits: Any) -> str:
    """Make a key as the command line does; returns the secret."""
    secret, key = make_key(name, NOW, **limits)
    KeyFile(directory / KEYS_FILE).add(key)
    return secret


class EchoAnswerer:
    """Answers as the engine does: a word of the prompt a token, ``n`` times, up to ``max_tokens``.

    The prompt decides on faults: "hang" never ends, "die" loses the replica, "long" is refused.
    """

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.closed = 0

    async def count_prompt_tokens(self, path: str, body: dict[str, Any]) -> int | dict[str, Any]:
        text = prompt_of(body)
        if text == "long":
            return {"error": {"message": "the prompt is too long", "code": 400, "param": "messages"}}
        return len(text.split())

    async def answer(self, path: str, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        self.bodies.append(body)
        words, n = prompt_of(body).split()[: body["max_tokens"]], body.get("n", 1)
        prompt = len(prompt_of(body).split())
        try:
            if words == ["die"]:
                raise WorkerCrashedError("the replica died")
            if not body.get("stream"):
                yield whole(path, words, n, prompt)
                return
            for place in range(len(words)):
                for index in range(n):
                    yield piece(path, words[place], index, prompt, place + 1)
                if words[place] == "hang":
                    await asyncio.sleep(3600)
            yield {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": MODEL, "choices": []} | usage(
                prompt, n * len(words)
            )
        finally:
            self.closed += 1


class WorkerCrashedError(Exception):
    """Ray's, by name."""


class InProcess:
    """`Admission` as the HTTP side calls it."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._admission, name)

        async def call(*arguments: Any) -> Any:
            return method(*arguments)

        return call


def prompt_of(body: dict[str, Any]) -> str:
    return str(body.get("prompt") or body["messages"][-1]["content"])


def usage(prompt: int, completion: int) -> dict[str, Any]:
    counts = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return {"usage": counts}


def whole(path: str, words: list[str], n: int, prompt: int) -> dict[str, Any]:
    text = " ".join(words)
    of_chat = {"message": {"role": "assistant", "content": text}} if "chat" in path else {"text": text}
    choices = [{"index": index, "finish_reason": "stop", **of_chat} for index in range(n)]
    kind = "chat.completion" if "chat" in path else "text_completion"
    head = {"id": "1", "object": kind, "created": 0, "model": MODEL, "choices": choices}
    return head | usage(prompt, n * len(words))


def piece(path: str, word: str, index: int, prompt: int, so_far: int) -> dict[str, Any]:
    of_chat = {"delta": {"role": "assistant", "content": word}} if "chat" in path else {"text": word}
    kind = "chat.completion.chunk" if "chat" in path else "text_completion"
    choices = [{"index": index, "finish_reason": None, **of_chat}]
    return {"id": "1", "object": kind, "created": 0, "model": MODEL, "choices": choices} | usage(prompt, so_far)


def visit(**changes: Any) -> Visit:
    from services.gateway.regions import Origin

    facts = {"origin": Origin("10.0.0.9"), "path": "/v1/chat/completions", "model": MODEL, "max_tokens": 10}
    return Visit(**{**facts, "prompt": "hello", "prompt_sha256": "0" * 64, **changes})


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def served(
    directory: Path,
    config: GatewayConfig,
    *,
    terms: str | None = None,
    clock: Clock | None = None,
    deadline_s: float = 30.0,
    watermark: WatermarkScheme | None = None,
) -> Iterator[tuple[str, EchoAnswerer, Admission]]:
    """Over HTTP on a free port of loopback; yields the address, the echo and the admission."""
    clock = clock or Clock()
    admission = Admission(make_spec(directory, config, terms), clock=clock.monotonic, now=clock.now)
    teacher = EchoAnswerer()
    spec = GatewaySpec(config, MODEL, {}, deadline_s, terms, watermark)
    server = uvicorn.Server(uvicorn.Config(build_app(spec, InProcess(admission), teacher), log_level="critical"))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()  # who asks before the server is up waits, and is not refused
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", teacher, admission
        finally:
            server.should_exit = True
            thread.join(10)
            admission.close()
