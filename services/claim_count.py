"""Rows of a whole table that claim an identity, counted by maker; reads it batch by batch, whatever its size.

Called when a run's data is sealed. What counts as a claim is `services.claims`'s to say.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from configs.claims import load_claims
from configs.table import RowStatus
from services.claims import Claim, claims_in_column

BATCH_ROWS = 256  # completions may be long, and only these are held at a time
EXAMPLES = 5  # of each maker: enough to look some up
COLUMNS = ["prompt_id", "sample_index", "status", "completion", "teacher_repo"]

OwnMakers = Callable[[str | None], frozenset[str]]


@dataclass(slots=True)
class MakerCount:
    """Rows that claim to be of one maker, which is their teacher's where ``own``; examples are ``prompt_id/sample``."""

    maker: str
    own: bool
    rows: int = 0
    accepted: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, row: str, *, accepted: bool) -> None:
        """Count one more row; accepted ones, which teach the student, are the better examples."""
        self.rows += 1
        self.accepted += accepted
        if accepted and len(self.examples) < EXAMPLES:
            self.examples.append(row)

    def to_dict(self) -> dict[str, Any]:
        return {
            "maker": self.maker,
            "own": self.own,
            "rows": self.rows,
            "accepted": self.accepted,
            "examples": self.examples,
        }


def count_claims(uri: str, paths: Iterable[str], own_makers: OwnMakers) -> dict[str, Any]:
    """What the rows of a completions table's files claim to be, as a manifest has it.

    ``own_makers`` says, from a row's ``teacher_repo``, whose model its teacher may call itself.
    """
    counts: dict[tuple[str, bool], MakerCount] = {}
    for path in paths:
        for row, claim, own in _claims_of_file(f"{uri}/{path}", own_makers):
            key = claim.maker, own
            count = counts.setdefault(key, MakerCount(*key))
            count.add(f"{row['prompt_id']}/{row['sample_index']}", accepted=row["status"] == RowStatus.ACCEPTED)
    ordered = sorted(counts.values(), key=lambda each: (each.own, -each.accepted, -each.rows, each.maker))
    return {"version": load_claims().version, "makers": [each.to_dict() for each in ordered]}


def _claims_of_file(path: str, own_makers: OwnMakers) -> Iterator[tuple[dict[str, Any], Claim, bool]]:
    with fsspec.open(path, "rb") as file:
        parquet = pq.ParquetFile(file)
        known = [name for name in COLUMNS if name in parquet.schema_arrow.names]
        for batch in parquet.iter_batches(batch_size=BATCH_ROWS, columns=known):
            own = [own_makers(teacher) for teacher in _teachers(batch)]
            for place, claim in claims_in_column(batch.column("completion"), own):
                [row] = batch.slice(place, 1).select(["prompt_id", "sample_index", "status"]).to_pylist()
                yield row, claim, claim.maker in own[place]


def _teachers(batch: pa.RecordBatch) -> list[str | None]:
    if "teacher_repo" not in batch.schema.names:
        return [None] * batch.num_rows
    teachers: list[str | None] = batch.column("teacher_repo").to_pylist()
    return teachers
