"""A Delta table that grows by whole shards: one Parquet file, one transaction, exactly once.

A writer first stores its file under a name of its own, then adds it to the log together with the application
transaction ``(app_id, 1)``. A second attempt at the same shard finds the transaction and stops; of two that race, the
log accepts one. Files that lost are garbage for the table's own vacuum. Each command that writes claims the table
first, and the ones before it stop.
"""

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

WRITER = "writer"  # application transaction whose version numbers the commands that have written to the table
FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 2.0
COMPRESSION = "zstd"
BOUND_CHARACTERS = 32  # of a text, as Spark's writer keeps: prompts and completions must not fill the log
LAST_CHARACTER = "\U0010ffff"

Outcome = TypeVar("Outcome")


@dataclass(frozen=True, slots=True)
class ShardFile:
    """One committed file: where it lies in the table and what the log's statistics say of it."""

    path: str
    shard: int
    num_rows: int
    nulls: dict[str, int]


def open_or_create(uri: str, schema: pa.Schema, name: str) -> DeltaTable:
    """Open the table, creating it first when it is missing; safe when several do so at once.

    Raises:
        UserError: the store cannot refuse to overwrite a file, without which no two commits are safe from each other.
    """
    try:
        return DeltaTable(uri)
    except TableNotFoundError:
        require_put_if_absent(uri)
        return DeltaTable.create(uri, Schema.from_arrow(schema), mode="ignore", name=name)


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


def claim(uri: str, schema: pa.Schema, deadline_s: float) -> int:
    """Make the caller the newest writer of the table and return its number; `require_newest` stops the older ones."""

    def attempt(_: int) -> int:
        table = DeltaTable(uri)
        number = (table.transaction_version(WRITER) or 0) + 1
        _transact(table, schema, [], Transaction(app_id=WRITER, version=number))
        return number

    return _until(deadline_s, attempt, f"{uri}: could not be claimed")


def require_newest(table: DeltaTable, writer: int) -> None:
    """Raise `UserError` when a later command has claimed the table: two would make every row twice."""
    newest = table.transaction_version(WRITER) or 0
    if newest > writer:
        raise UserError(
            f"{table.table_uri}: a later command works on this run (number {newest}, and this is number {writer}), "
            "so this one stops; what it has committed stays"
        )


def is_committed(table: DeltaTable, app_id: str) -> bool:
    """Whether the table version at hand has the transaction."""
    return table.transaction_version(app_id) is not None


def write_file(uri: str, rows: pa.Table, shard: int, footer: dict[str, str]) -> AddAction:
    """Store one shard's rows under a fresh name; nobody sees them before `commit` adds them."""
    name = f"shard-{shard:06d}-{uuid.uuid4().hex}.parquet"
    rows = rows.replace_schema_metadata({key.encode(): value.encode() for key, value in footer.items()})
    path = f"{uri.rstrip('/')}/{name}"
    with fsspec.open(path, "wb") as file:
        pq.write_table(rows, file, compression=COMPRESSION)
    filesystem, stored = fsspec.url_to_fs(path)
    return AddAction(name, filesystem.size(stored), {}, int(time.time() * 1000), True, json.dumps(_statistics(rows)))


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


def commit(
    uri: str,
    schema: pa.Schema,
    actions: list[AddAction],
    app_id: str,
    deadline_s: float,
    *,
    writer: int | None = None,
) -> bool:
    """Add the files in one transaction. Returns False when another attempt's transaction is there: nothing changed.

    A refusal or a lost acknowledgement is resolved by reading the log back.

    Raises:
        UserError: a later command has claimed the table since ``writer`` did.
        DeadlineExceeded: the store has refused for ``deadline_s`` seconds; carries its last refusal.
    """

    def attempt(number: int) -> bool:
        table = DeltaTable(uri)
        if is_committed(table, app_id):
            return number > 0 and _has_files(table, actions)
        if writer is not None:
            require_newest(table, writer)
        _transact(table, schema, actions, Transaction(app_id=app_id, version=1))
        return True

    return _until(deadline_s, attempt, f"{uri}: {app_id} could not be committed")


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
        )


def _transact(table: DeltaTable, schema: pa.Schema, actions: list[AddAction], transaction: Transaction) -> None:
    changes: list[AddAction | RemoveAction] = [*actions]
    properties = CommitProperties(app_transactions=[transaction])
    table.create_write_transaction(
        changes, mode="append", schema=Schema.from_arrow(schema), commit_properties=properties
    )


def _until(deadline_s: float, attempt: Callable[[int], Outcome], failure: str) -> Outcome:
    """Try, with growing pauses, until it succeeds; each attempt reads the log anew."""
    give_up_at = time.monotonic() + deadline_s
    for number in count():
        try:
            return attempt(number)
        except (CommitFailedError, DeltaError, OSError) as error:
            if time.monotonic() > give_up_at:
                raise DeadlineExceeded(f"{failure} in {deadline_s:.0f} s (deadlines.commit): {error}") from error
            time.sleep(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0**number) * random.uniform(0.5, 1.5))
    raise AssertionError("unreachable")


def _has_files(table: DeltaTable, actions: list[AddAction]) -> bool:
    present = {file.path for file in shard_files(table)}
    return all(action.path in present for action in actions)
