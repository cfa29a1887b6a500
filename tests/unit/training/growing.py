"""A completions table that grows commit by commit, as the teacher's side writes it."""

from pathlib import Path
from typing import Any

import pyarrow as pa
from deltalake import DeltaTable

from configs.table import COMPLETIONS_SCHEMA
from services.table import TableWriter, open_or_create, write_file
from training.job import Commits

DEADLINE_S = 5.0


class GrowingTable:
    """The table at ``path``, opened or created."""

    def __init__(self, path: Path) -> None:
        self.uri = str(path)
        open_or_create(self.uri, COMPLETIONS_SCHEMA, "completions")
        self._writer = TableWriter(self.uri, COMPLETIONS_SCHEMA, DEADLINE_S)

    def commit(self, shards: dict[int, list[dict[str, Any]]]) -> None:
        """Add shards of `tests.unit.training.tiny.make_rows` in one transaction, in the order given."""
        self._writer.add([write_file(self.uri, _to_table(rows, n), n, {}, DEADLINE_S) for n, rows in shards.items()])

    def commits(self, num_files: int, deadline_s: float = 60.0) -> Commits:
        """What a job is told of the table."""
        return Commits(self.uri, str(DeltaTable(self.uri).metadata().id), num_files, deadline_s)


def _to_table(rows: list[dict[str, Any]], shard: int) -> pa.Table:
    counts = {"num_prompt_tokens": 0, "num_completion_tokens": 0, "sample_index": 0, "finish_reason": "stop"}
    full = [{**dict.fromkeys(COMPLETIONS_SCHEMA.names), **counts, **row, "shard": shard} for row in rows]
    return pa.Table.from_pylist(full, schema=COMPLETIONS_SCHEMA)
