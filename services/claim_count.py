"""Rows of a whole table that claim an identity, counted by maker; reads files batch by batch, whatever their size.

Shown each file when a run's data is sealed. What counts as a claim is `services.claims`'s to say.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

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


class ClaimCount:
    """What the rows of a completions table's files claim to be.

    ``own_makers`` says, from a row's ``teacher_repo``, whose model its teacher may call itself.
    """

    def __init__(self, own_makers: OwnMakers) -> None:
        self._own_makers = own_makers
        self._counts: dict[tuple[str, bool], MakerCount] = {}

    def add(self, file: pq.ParquetFile) -> None:
        """Count the rows of one more file."""
        for row, claim, own in self._claims_of(file):
            key = claim.maker, own
            count = self._counts.setdefault(key, MakerCount(*key))
            count.add(f"{row['prompt_id']}/{row['sample_index']}", accepted=row["status"] == RowStatus.ACCEPTED)

    def to_dict(self) -> dict[str, Any]:
        """As a manifest has it."""
        ordered = sorted(self._counts.values(), key=lambda each: (each.own, -each.accepted, -each.rows, each.maker))
        return {"version": load_claims().version, "makers": [each.to_dict() for each in ordered]}

    def _claims_of(self, file: pq.ParquetFile) -> Iterator[tuple[dict[str, Any], Claim, bool]]:
        known = [name for name in COLUMNS if name in file.schema_arrow.names]
        for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=known):
            own = [self._own_makers(teacher) for teacher in _teachers(batch)]
            for place, claim in claims_in_column(batch.column("completion"), own):
                [row] = batch.slice(place, 1).select(["prompt_id", "sample_index", "status"]).to_pylist()
                yield row, claim, claim.maker in own[place]


def _teachers(batch: pa.RecordBatch) -> list[str | None]:
    if "teacher_repo" not in batch.schema.names:
        return [None] * batch.num_rows
    teachers: list[str | None] = batch.column("teacher_repo").to_pylist()
    return teachers
