"""PLAN: cuts the prompts into immutable shards, written as a Delta table of one file a shard.

Planning again with reordered or more prompts adds only what is new, as further shards; rows never change shard. The
set of known ids lives in a SQLite file on local disk, so memory does not grow with the data.
"""

import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.transaction import AddAction

from configs.errors import UserError
from configs.table import PROMPTS_SCHEMA
from services.prompts import Prompt
from services.table import ShardFile, TableWriter, open_or_create, shard_files, write_file


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run has to make: ``num_rows`` = prompts times samples, over all shards planned so far."""

    num_shards: int
    num_prompts: int
    num_rows: int
    new_prompts: int = 0
    duplicates: int = 0


def extend_plan(
    uri: str, prompts: Iterable[Prompt], *, samples_per_prompt: int, shard_rows: int, commit_deadline_s: float
) -> Plan:
    """Plan every prompt that is not planned yet, in one transaction.

    Raises:
        UserError: there is no prompt at all, or another process extended the same plan meanwhile.
    """
    planned_before = list(shard_files(open_or_create(uri, PROMPTS_SCHEMA, "prompts")))
    size = prompts_per_shard(shard_rows, samples_per_prompt)
    actions: list[AddAction] = []
    counts = _Counts()
    with _KnownIds() as known:
        known.add(_planned_ids(uri, planned_before))
        fresh = _take_new(prompts, known, counts)
        for shard, members in enumerate(_in_shards(fresh, size), start=len(planned_before)):
            actions.append(write_file(uri, _to_table(members, shard), shard, {}, commit_deadline_s))
    if actions:
        writer = TableWriter(uri, PROMPTS_SCHEMA, commit_deadline_s)
        if list(writer.files()) != planned_before:
            raise UserError(f"another process planned the same run at the same time ({uri}); run the command again")
        writer.add(actions)
    if counts.seen == 0:
        raise UserError("prompts: the source has no prompts; it must have at least one row")
    planned = read_plan(uri, samples_per_prompt)
    return replace(planned, new_prompts=counts.new, duplicates=max(0, counts.seen - planned.num_prompts))


def prompts_per_shard(shard_rows: int, samples_per_prompt: int) -> int:
    """How many whole prompts make a shard of at most ``shard_rows`` rows; at least one."""
    return max(1, shard_rows // samples_per_prompt)


def read_plan(uri: str, samples_per_prompt: int) -> Plan:
    """What has been planned, read from the log alone."""
    files = list(shard_files(DeltaTable(uri)))
    prompts = sum(file.num_rows for file in files)
    return Plan(len(files), prompts, prompts * samples_per_prompt)


def read_shard(uri: str, path: str) -> pa.Table:
    """The prompts of one shard, as `PROMPTS_SCHEMA`."""
    with fsspec.open(f"{uri.rstrip('/')}/{path}", "rb") as file:
        return pq.read_table(file, schema=PROMPTS_SCHEMA)


@dataclass(slots=True)
class _Counts:
    seen: int = 0
    new: int = 0


class _KnownIds:
    """A set of prompt ids on disk."""

    def __enter__(self) -> "_KnownIds":
        self._directory = tempfile.TemporaryDirectory(prefix="stillhouse-plan-")
        self._database = sqlite3.connect(Path(self._directory.name) / "ids.sqlite", isolation_level=None)
        self._database.execute("PRAGMA journal_mode = OFF")  # scratch: rebuilt from the plan after any crash
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.execute("CREATE TABLE known (id TEXT PRIMARY KEY) WITHOUT ROWID")
        self._database.execute("BEGIN")
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()
        self._directory.cleanup()

    def add(self, ids: Iterable[str]) -> None:
        self._database.executemany("INSERT OR IGNORE INTO known VALUES (?)", ((each,) for each in ids))

    def add_if_new(self, prompt_id: str) -> bool:
        with closing(self._database.execute("INSERT OR IGNORE INTO known VALUES (?)", (prompt_id,))) as cursor:
            return cursor.rowcount == 1


def _planned_ids(uri: str, files: list[ShardFile]) -> Iterator[str]:
    for file in files:
        yield from read_shard(uri, file.path).column("prompt_id").to_pylist()


def _take_new(prompts: Iterable[Prompt], known: _KnownIds, counts: _Counts) -> Iterator[Prompt]:
    for prompt in prompts:
        counts.seen += 1
        if known.add_if_new(prompt.prompt_id):
            counts.new += 1
            yield prompt


def _in_shards(prompts: Iterator[Prompt], size: int) -> Iterator[list[Prompt]]:
    """Groups of at most ``size`` prompts for one teacher each, in the order in which they are full."""
    begun: dict[str | None, list[Prompt]] = {}
    for prompt in prompts:
        group = begun.setdefault(prompt.teacher, [])
        group.append(prompt)
        if len(group) == size:
            yield begun.pop(prompt.teacher)
    yield from begun.values()


def _to_table(rows: list[Prompt], shard: int) -> pa.Table:
    return pa.table(
        {
            "prompt_id": [row.prompt_id for row in rows],
            "shard": [shard] * len(rows),
            "prompt": [row.prompt for row in rows],
            "answer": [row.answer for row in rows],
            "error": [row.error for row in rows],
            "teacher": [row.teacher for row in rows],
        },
        schema=PROMPTS_SCHEMA,
    )
