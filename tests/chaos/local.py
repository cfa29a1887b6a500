"""A run in this process, without Ray: real clients, pipeline and tables, the echo in place of a deployment handle.

A crash is an exception that nothing in the program catches, raised before the n-th change of the store and before each
one after it, until the command is started again.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake.transaction import AddAction
from ray import serve

import services.client
import services.pipeline
from benchmarks.echo import answer
from configs.errors import UserError
from services.client import ClientSpec, ShardClient
from services.dataset import Seal, seal
from services.generation import GenerateRequest, GenerateResult
from services.table import TableWriter
from tests.chaos.clients import REFUSED, StandInRenderer
from tests.chaos.driver import DriverJob, feeds, make_prompts, plan, tasks

TASKS = pa.schema([("table", pa.string()), ("shard", pa.int32()), ("path", pa.string())])
TURN_S = 2.0  # for a shard to be committed before the next one is begun all the same

Task = dict[str, Any]
Summary = dict[str, Any]


class Crash(Exception):
    """The process is gone."""


@dataclass
class Response:
    """What a streaming handle returns: results come from it, and it can be cancelled."""

    results: list[GenerateResult]
    delay_s: float

    async def __aiter__(self) -> AsyncIterator[list[GenerateResult]]:
        await asyncio.sleep(self.delay_s)
        yield self.results

    def cancel(self) -> None:
        """There is nothing to cancel."""


@dataclass
class LocalTeacher:
    """Looks like a deployment handle; refuses prompts with the character `REFUSED`."""

    delay_s: float = 0.0

    def options(self, *, stream: bool) -> "LocalTeacher":
        return self

    @property
    def generate(self) -> "LocalTeacher":
        return self

    def remote(self, batch: list[GenerateRequest]) -> Response:
        return Response([answer(each, refuse_token=ord(REFUSED)) for each in batch], self.delay_s)


@dataclass
class Store:
    """Counts changes of the store, and stops the process before one of them."""

    crash_before: int | None = None
    changes: int = 0
    is_gone: bool = False
    before_change: list[Callable[[int], None]] = field(default_factory=list)
    teacher: LocalTeacher = field(default_factory=LocalTeacher)

    def change(self) -> None:
        self.is_gone = self.is_gone or self.changes == self.crash_before
        if self.is_gone:
            raise Crash
        self.changes += 1
        for call in self.before_change:
            call(self.changes)

    def restart(self, crash_before: int | None = None) -> None:
        """What comes now is another process, which dies before that change, counted from here."""
        self.changes, self.crash_before, self.is_gone = 0, crash_before, False


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    """Puts the echo in place of Serve, and watches uploads and commits."""
    store = Store()
    monkeypatch.setattr(serve, "get_app_handle", lambda _: store.teacher)
    monkeypatch.setattr(services.client, "PromptRenderer", StandInRenderer)
    # For good: this process would have a transformers without PyTorch in later tests as well.
    monkeypatch.setattr(services.client, "import_transformers_without_torch", lambda: None)
    monkeypatch.setattr(services.pipeline, "COMMIT_EVERY_S", 0.0)
    monkeypatch.setattr(services.pipeline, "STREAM_END_S", TURN_S)
    monkeypatch.setattr(pq, "write_table", _counted(pq.write_table, store))
    monkeypatch.setattr(TableWriter, "_transact", _counted(TableWriter._transact, store))
    return store


def local_job(directory: Path | str, num_prompts: int = 24, **options: Any) -> DriverJob:
    """A small run of a few shards."""
    values: dict[str, Any] = {"prompts": make_prompts(num_prompts), "shard_rows": 8, "commit_deadline_s": 5.0}
    return DriverJob("", "echo", str(directory), **(values | options))


def make_shards(job: DriverJob, limit: int | None = None) -> list[Summary]:
    """Plan and make what is pending, as a command does; the summaries of the shards."""
    plan(job)
    return list(stream(job, tasks(job)[:limit]))


def stream(
    job: DriverJob, todo: list[Task], on_silence: Callable[[float, int], None] = lambda *_: None
) -> Iterator[Summary]:
    """`stream_shards` on one client in this process, which begins a shard when the one before is committed."""
    with _clients_replaced():
        yield from services.pipeline.stream_shards(feeds(job, todo), on_silence)


def to_block(rows: list[Task]) -> pa.Table:
    """Tasks as Ray Data gives them to a client."""
    return pa.Table.from_pylist(rows, schema=TASKS)


def seal_run(job: DriverJob) -> Seal:
    """Seal the tables of a job."""
    return seal(job.prompts_uri, job.completions_uri, job.samples)


@contextmanager
def _clients_replaced() -> Iterator[None]:
    turn = threading.Semaphore(1)

    def run_clients(spec: ClientSpec, todo: list[Task]) -> Iterator[Summary]:
        client = ShardClient(spec)
        for task in todo:
            turn.acquire(timeout=TURN_S)
            [summary] = client(to_block([task])).to_pylist()
            if (error := summary.pop("error")) is not None:
                raise UserError(error)
            yield summary

    def add_and_pass_on(self: TableWriter, files: list[AddAction]) -> None:
        try:
            add(self, files)
        finally:
            turn.release()

    add = TableWriter.add
    with (
        patch.object(services.pipeline, "_run_clients", run_clients),
        patch.object(TableWriter, "add", add_and_pass_on),
    ):
        yield


def _counted(change: Callable[..., Any], store: Store) -> Callable[..., Any]:
    def counted(*arguments: Any, **options: Any) -> Any:
        store.change()
        return change(*arguments, **options)

    return counted
