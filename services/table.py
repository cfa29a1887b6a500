"""A Delta table that grows by whole shards: one Parquet file, one transaction, exactly once.

A writer first stores its file under a name of its own, then adds it to the log together with the application
transaction ``(app_id, 1)``. A second attempt at the same shard finds the transaction and stops; of two that race, the
log accepts one. Files that lost are garbage for the table's own vacuum.
"""

import json
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Schema, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, RemoveAction

from configs.errors import DeadlineExceeded

LONGEST_PAUSE_S = 2.0
COMPRESSION = "zstd"


@dataclass(frozen=True, slots=True)
class ShardFile:
    """One committed file: where it lies in the table and what the log's statistics say of it."""

    path: str
    shard: int
    num_rows: int
    nulls: dict[str, int]


def open_or_create(uri: str, schema: pa.Schema, name: str) -> DeltaTable:
    """Open the table, creating it first when it is missing; safe when several do so at once."""
    try:
        return DeltaTable(uri)
    except TableNotFoundError:
        return DeltaTable.create(uri, Schema.from_arrow(schema), mode="ignore", name=name)


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
    statistics = {
        "numRecords": rows.num_rows,
        "minValues": {"shard": shard},
        "maxValues": {"shard": shard},
        "nullCount": {column: rows.column(column).null_count for column in rows.column_names},
    }
    return AddAction(name, filesystem.size(stored), {}, int(time.time() * 1000), True, json.dumps(statistics))


def commit(uri: str, schema: pa.Schema, actions: list[AddAction], app_id: str, deadline_s: float) -> bool:
    """Add the files in one transaction. Returns False when another attempt's transaction is there: nothing changed.

    A refusal or a lost acknowledgement is resolved by reading the log back.

    Raises:
        DeadlineExceeded: the store has refused for ``deadline_s`` seconds; carries its last refusal.
    """
    give_up_at = time.monotonic() + deadline_s
    changes: list[AddAction | RemoveAction] = [*actions]
    properties = CommitProperties(app_transactions=[Transaction(app_id=app_id, version=1)])
    for attempt in count():
        try:
            table = DeltaTable(uri)
            if is_committed(table, app_id):
                return attempt > 0 and _has_files(table, actions)
            table.create_write_transaction(
                changes, mode="append", schema=Schema.from_arrow(schema), commit_properties=properties
            )
            return True
        except (CommitFailedError, DeltaError, OSError) as error:
            if time.monotonic() > give_up_at:
                raise DeadlineExceeded(
                    f"{uri}: {app_id} could not be committed in {deadline_s:.0f} s (deadlines.commit): {error}"
                ) from error
            time.sleep(min(LONGEST_PAUSE_S, 0.05 * 2.0**attempt))
    raise AssertionError("unreachable")


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


def _has_files(table: DeltaTable, actions: list[AddAction]) -> bool:
    present = {file.path for file in shard_files(table)}
    return all(action.path in present for action in actions)
