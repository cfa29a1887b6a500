"""Shard clients in this process: the real thing, with a teacher in place of a deployment handle."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from ray import serve

import services.client
from configs.schema import GenerationConfig
from services.client import ClientSpec, ShardClient, TableJob
from services.generation import GenerateRequest, GenerateResult, Sample
from tests.chaos.clients import StandInRenderer


@dataclass
class StandInTeacher:
    """Looks like a deployment handle; says each prompt again, one row after another, each after ``row_s``."""

    row_s: float = 0.0

    def options(self, *, stream: bool) -> "StandInTeacher":
        return self

    @property
    def generate(self) -> "StandInTeacher":
        return self

    def remote(self, batch: list[GenerateRequest]) -> "Response":
        return Response(batch, self.row_s)


@dataclass
class Response:
    """What a streaming handle returns."""

    batch: list[GenerateRequest]
    row_s: float

    async def __aiter__(self) -> AsyncIterator[list[GenerateResult]]:
        for each in self.batch:
            await asyncio.sleep(self.row_s)
            yield [GenerateResult(each.request_id, (Sample(each.prompt_token_ids, "stop"),))]

    def cancel(self) -> None:
        """There is nothing to cancel."""


def make_spec(tables: dict[str, TableJob] | None = None, **values: Any) -> ClientSpec:
    """A spec with short deadlines of its own."""
    settings: dict[str, Any] = {
        "window_rows": 16,
        "request_deadline_s": 30.0,
        "shard_deadline_s": 30.0,
        "commit_deadline_s": 5.0,
        "generation": GenerationConfig(shard_rows=64),
    }
    return ClientSpec(
        app_name="teacher",
        tables=tables or {},
        tokenizer="",
        tokenizer_revision=None,
        chat_template_kwargs={},
        trust_remote_code=True,  # so that this process keeps its PyTorch
        **settings | values,
    )


@contextmanager
def make_client(monkeypatch: pytest.MonkeyPatch, spec: ClientSpec, teacher: StandInTeacher) -> Iterator[ShardClient]:
    """The client as its actor would have it, until it is left."""
    monkeypatch.setattr(serve, "get_app_handle", lambda _: teacher)
    monkeypatch.setattr(services.client, "PromptRenderer", StandInRenderer)
    client = ShardClient(spec)
    try:
        yield client
    finally:
        client._loop.call_soon_threadsafe(client._loop.stop)  # or it would look for replicas in other tests
