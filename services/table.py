"""A Delta table that grows by whole shards: one Parquet file, one transaction, exactly once.

A file is first stored under a name of its own; then a `TableWriter` adds it to the log, alone or together with others
that are ready. A command has one writer for each table and claims the table with it: the writers before it are refused
by the log from then on, so nobody else can add a shard that this one adds. Files that were never added are garbage for
the table's own vacuum.
"""

import hashlib
import json
import math
import os
import random
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeVar

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Schema, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, RemoveAction
from fsspec.implementations.local import LocalFileSystem

from configs.errors import DeadlineExceeded, UserError
from configs.table import COMMITTED_DIGESTS

WRITER = "writer"  # application transaction whose version numbers the commands that have written to the table
FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 2.0
COMPRESSION = "zstd"
BOUND_CHARACTERS = 32  # of a text, as Spark's writer keeps: prompts and completions must not fill the log
STORE_LIBRARIES = ("aiohttp", "botocore", "azure", "gcsfs", "google")  # below fsspec; imported by it alone
LAST_CHARACTER = "\U0010ffff"

Outcome = TypeVar("Outcome")


@dataclass(frozen=True, slots=True)
class ShardFile:
    """One committed file: where it lies in the table and what the log's statistics say of it."""

    path: str
    shard: int
    num_rows: int
    nulls: dict[str, int]
    teacher: str | None = None


@dataclass
class StoredFile(AddAction):
    """What the log is told of a stored file, and the digest of its bytes as they were written."""

    sha256: str = ""


class _Hashing:
    """A file that takes the SHA-256 of what is written to it."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return int(self._file.write(data))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def open_or_create(uri: str, schema: pa.Schema, name: str) -> DeltaTable:
    """Open the table, creating it first when it is missing; safe when several do so at once.

    Raises:
        UserError: the store cannot refuse to overwrite a file, without which no two commits are safe from each other.
    """
    try:
        return DeltaTable(uri)
    except TableNotFoundError:
        require_put_if_absent(uri)
        # The order of the commits is an order of training, so none of them is ever cleaned up.
        keep = {"delta.enableExpiredLogCleanup": "false"}
        return DeltaTable.create(uri, Schema.from_arrow(schema), mode="ignore", name=name, configuration=keep)


def require_put_if_absent(uri: str) -> None:
    """Try it out: the second of two puts of one name must be refused.

    Raises:
        UserError: it was not, or delta-rs has been told to do without.
    """
    if os.environ.get("AWS_S3_ALLOW_UNSAFE_RENAME", "").lower() in ("1", "true"):
        raise UserError(f"run_dir: {uri} would be written without put-if-absent; unset AWS_S3_ALLOW_UNSAFE_RENAME")
    filesystem, path = fsspec.url_to_fs(f"{uri.rstrip('/')}/.put-if-absent-{uuid.uuid4().hex}")
    if isinstance(filesystem, LocalFileSystem):  # hard links and renames refuse by themselves
        return
    filesystem.pipe_file(path, b"1", mode="create")
    try:
        filesystem.pipe_file(path, b"2", mode="create")
    except OSError:
        return
    finally:
        filesystem.rm_file(path)
    raise UserError(
        f"run_dir: the store of {uri} has no put-if-absent (If-None-Match), so two commits could overwrite each other; "
        "choose another store"
    )


def write_file(uri: str, rows: pa.Table, shard: int, footer: dict[str, str], deadline_s: float) -> StoredFile:
    """Store one shard's rows under a fresh name; nobody sees them before a `TableWriter` adds them.

    An attempt that fails removes what it has left: on a full disk the next one needs that room.

    Raises:
        DeadlineExceeded: the store has refused for ``deadline_s`` seconds, as a full disk does.
    """
    rows = rows.replace_schema_metadata({key.encode(): value.encode() for key, value in footer.items()})
    statistics = json.dumps(_statistics(rows))

    def attempt(_: int) -> StoredFile:
        name = f"shard-{shard:06d}-{uuid.uuid4().hex}.parquet"  # a put that was given up may still arrive
        path = f"{uri.rstrip('/')}/{name}"
        try:
            with fsspec.open(path, "wb") as file:
                hashing = _Hashing(file)
                pq.write_table(rows, hashing, compression=COMPRESSION)
            filesystem, stored = fsspec.url_to_fs(path)
            digest = hashing.digest.hexdigest()
            return StoredFile(name, filesystem.size(stored), {}, int(time.time() * 1000), True, statistics, digest)
        except Exception:
            _remove(path)
            raise

    return _until(deadline_s, attempt, f"{uri}: shard {shard} could not be stored")


def _remove(path: str) -> None:
    """Remove a file that was stored in part, or not at all; one that stays is garbage for the table's vacuum."""
    try:
        filesystem, stored = fsspec.url_to_fs(path)
        filesystem.rm_file(stored)
    except Exception as error:
        if not _is_of_store(error):
            raise


def _statistics(rows: pa.Table) -> dict[str, Any]:
    """Delta's statistics of a file, bounds of every plain column included.

    Readers skip files by them, and delta-rs takes a bound that is missing for one that nothing is within.
    """
    bounds = {
        name: pc.min_max(column).as_py()
        for name, column in zip(rows.column_names, rows.columns, strict=True)
        if not pa.types.is_nested(column.type)
    }
    return {
        "numRecords": rows.num_rows,
        "minValues": {name: _lower(bound["min"]) for name, bound in bounds.items()},
        "maxValues": {name: _upper(bound["max"]) for name, bound in bounds.items()},
        "nullCount": {name: rows.column(name).null_count for name in rows.column_names},
    }


def _lower(bound: Any) -> Any:
    return bound[:BOUND_CHARACTERS] if isinstance(bound, str) else bound


def _upper(bound: Any) -> Any:
    """A prefix is less than the whole, so a bound that is cut is raised above everything that begins with it."""
    if isinstance(bound, str) and len(bound) > BOUND_CHARACTERS:
        return bound[:BOUND_CHARACTERS] + LAST_CHARACTER
    return bound


class TableWriter:
    """The only one that can add files to a table, until a later command claims it.

    Each change carries the application transaction `WRITER` with this writer's number, so of two writers' changes that
    race the log accepts one. A refusal or a lost acknowledgement is resolved by reading the log back.

    Raises:
        DeadlineExceeded: the store has refused the claim for ``deadline_s`` seconds; carries its last refusal.
    """

    def __init__(self, uri: str, schema: pa.Schema, deadline_s: float) -> None:
        self._uri, self._schema, self._deadline_s = uri, schema, deadline_s
        self.number = _until(deadline_s, self._claim, f"{uri}: could not be claimed")

    def files(self) -> Iterator[ShardFile]:
        """What the table holds now, in order of the shards."""
        self._table.update_incremental()
        return shard_files(self._table)

    def require_newest(self) -> None:
        """Raise `UserError` when a later command has claimed the table: two would make every row twice."""
        self._table.update_incremental()
        newest = self._table.transaction_version(WRITER) or 0
        if newest > self.number:
            raise UserError(
                f"{self._uri}: a later command works on this run (number {newest}, and this is number {self.number}), "
                "so this one stops; what it has committed stays"
            )

    def add(self, files: list[AddAction]) -> None:
        """Add the files, which are stored already, in one transaction: all of them or none.

        Raises:
            UserError: a later command has claimed the table.
            DeadlineExceeded: the store has refused for the deadline; carries its last refusal.
        """

        def attempt(number: int) -> None:
            self.require_newest()
            if number == 0 or not _has_files(self._table, files):
                self._transact(files)

        _until(self._deadline_s, attempt, f"{self._uri}: {len(files)} shards could not be committed")

    def _claim(self, _: int) -> int:
        self._table = DeltaTable(self._uri)
        self.number = (self._table.transaction_version(WRITER) or 0) + 1
        self._transact([])
        return self.number

    def _transact(self, files: list[AddAction]) -> None:
        """The one place that changes the log."""
        changes: list[AddAction | RemoveAction] = [*files]
        transaction = Transaction(app_id=WRITER, version=self.number)
        digests = {each.path: each.sha256 for each in files if isinstance(each, StoredFile)}
        metadata = {COMMITTED_DIGESTS: json.dumps(digests)} if digests else None
        self._table.create_write_transaction(
            changes,
            mode="append",
            schema=Schema.from_arrow(self._schema),
            commit_properties=CommitProperties(custom_metadata=metadata, app_transactions=[transaction]),
        )


def remove_orphans(uri: str, grace_s: float) -> list[str]:
    """Remove files that no version of the table names and that are older than ``grace_s``; returns their paths.

    They are what attempts left that died or lost a race. The grace must be longer than any commit may take.
    """
    hours = math.ceil(grace_s / 3600)
    return DeltaTable(uri).vacuum(hours, dry_run=False, enforce_retention_duration=False, full=True)


def shard_files(table: DeltaTable) -> Iterator[ShardFile]:
    """The files of this table version in order of their shard."""
    actions = pa.table(table.get_add_actions(flatten=True))
    columns = {name: actions.column(name).to_pylist() for name in actions.column_names}
    null_counts = {name.removeprefix("null_count."): name for name in columns if name.startswith("null_count.")}
    order = sorted(range(actions.num_rows), key=lambda row: (columns["min.shard"][row], columns["path"][row]))
    for row in order:
        yield ShardFile(
            path=columns["path"][row],
            shard=columns["min.shard"][row],
            num_rows=columns["num_records"][row],
            nulls={column: columns[name][row] or 0 for column, name in null_counts.items()},
            teacher=columns["min.teacher"][row] if "min.teacher" in columns else None,
        )


def _until(deadline_s: float, attempt: Callable[[int], Outcome], failure: str) -> Outcome:
    """Try, with growing pauses, until it succeeds; each attempt reads the log anew."""
    give_up_at = time.monotonic() + deadline_s
    for number in count():
        try:
            return attempt(number)
        except Exception as error:
            if not _is_of_store(error):
                raise
            if time.monotonic() > give_up_at:
                raise DeadlineExceeded(f"{failure} in {deadline_s:.0f} s (deadlines.commit): {error}") from error
            time.sleep(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0**number) * random.uniform(0.5, 1.5))
    raise AssertionError("unreachable")


def _is_of_store(error: Exception) -> bool:
    """Whether trying again may help; a client library's errors of a broken connection are of no common class."""
    library = type(error).__module__.partition(".")[0]
    return isinstance(error, CommitFailedError | DeltaError | OSError) or library in STORE_LIBRARIES


def _has_files(table: DeltaTable, actions: list[AddAction]) -> bool:
    present = {file.path for file in shard_files(table)}
    return all(action.path in present for action in actions)
