"""A run in this process, without Ray: the real client and the real tables, the echo in place of a deployment handle.

A crash is an exception that nothing in the program catches, raised before the n-th change of the store.
"""

import asyncio
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray import serve

import services.client
import services.table
from benchmarks.echo import answer
from services.client import ShardClient
from services.dataset import Seal, seal
from services.generation import GenerateRequest, GenerateResult
from tests.chaos.clients import REFUSED, StandInRenderer
from tests.chaos.driver import DriverJob, client_spec, make_prompts, plan, tasks

TASKS = pa.schema([("table", pa.string()), ("shard", pa.int32()), ("path", pa.string())])


class Crash(BaseException):
    """The process is gone."""


@dataclass
class Response:
    """What a handle returns: it can be awaited, and cancelled."""

    results: list[GenerateResult]
    delay_s: float

    def __await__(self) -> Generator[Any, None, list[GenerateResult]]:
        yield from asyncio.sleep(self.delay_s).__await__()
        return self.results

    def cancel(self) -> None:
        """There is nothing to cancel."""


@dataclass
class LocalTeacher:
    """Looks like a deployment handle; refuses prompts with the character `REFUSED`."""

    delay_s: float = 0.0

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
    before_change: list[Callable[[int], None]] = field(default_factory=list)
    teacher: LocalTeacher = field(default_factory=LocalTeacher)

    def change(self) -> None:
        if self.changes == self.crash_before:
            self.crash_before = None
            raise Crash
        self.changes += 1
        for call in self.before_change:
            call(self.changes)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    """Puts the echo in place of Serve, and watches uploads and commits."""
    store = Store()
    monkeypatch.setattr(serve, "get_app_handle", lambda _: store.teacher)
    monkeypatch.setattr(services.client, "PromptRenderer", StandInRenderer)
    monkeypatch.setattr(pq, "write_table", _counted(pq.write_table, store))
    monkeypatch.setattr(services.table, "_transact", _counted(services.table._transact, store))
    return store


def local_job(directory: Path | str, num_prompts: int = 24, **options: Any) -> DriverJob:
    """A small run of a few shards."""
    values: dict[str, Any] = {"prompts": make_prompts(num_prompts), "shard_rows": 8, "commit_deadline_s": 5.0}
    return DriverJob("", "echo", str(directory), **(values | options))


def to_block(rows: list[dict[str, Any]]) -> pa.Table:
    """Tasks as Ray Data gives them to a client."""
    return pa.Table.from_pylist(rows, schema=TASKS)


def make_shards(job: DriverJob, limit: int | None = None) -> list[dict[str, Any]]:
    """Plan and make what is pending, as a command does; the clients' summaries."""
    plan(job)
    client = ShardClient(client_spec(job))
    rows = tasks(job)[:limit]
    return [client(to_block([row])).to_pylist()[0] for row in rows]


def seal_run(job: DriverJob) -> Seal:
    """Seal the tables of a job."""
    return seal(job.prompts_uri, job.completions_uri, job.samples)


def _counted(change: Callable[..., Any], store: Store) -> Callable[..., Any]:
    def counted(*arguments: Any, **options: Any) -> Any:
        store.change()
        return change(*arguments, **options)

    return counted
