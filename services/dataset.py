"""The completions table as a whole: its ledger, what is still pending, and the sealed version that training reads."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable

from configs.errors import UserError
from configs.schema import ONLY_TEACHER
from configs.table import LICENSED_COLUMNS, RowStatus
from services.file_digest import describe_one_of_many, to_words
from services.plan import read_shard
from services.table import ShardFile, shard_files

NAMED_IDS = 5  # how many missing or doubled ids an error names: enough to look one up


@dataclass(frozen=True, slots=True)
class Ledger:
    """Where every planned row stands; ``planned = accepted + rejected + failed + pending`` always."""

    planned: int
    accepted: int
    rejected: int
    failed: int

    @property
    def pending(self) -> int:
        return self.planned - self.accepted - self.rejected - self.failed

    def to_dict(self) -> dict[str, int]:
        return {**asdict(self), "pending": self.pending}


@dataclass(frozen=True, slots=True)
class SealedFile:
    """One file of the sealed version with its digests, which `services.file_digest.describe` made."""

    path: str
    num_rows: int
    digests: dict[str, Any]

    @property
    def sha256(self) -> str:
        return str(self.digests["sha256"])

    def to_dict(self) -> dict[str, Any]:
        """As a manifest has it."""
        return {"path": self.path, "num_rows": self.num_rows, **to_words(self.digests)}


@dataclass(frozen=True, slots=True)
class LineageCount:
    """Rows that are alike in `LICENSED_COLUMNS`, whose values are ``lineage``, and how many were accepted."""

    lineage: tuple[str | None, ...]
    rows: int
    accepted: int

    def to_dict(self) -> dict[str, Any]:
        return {**dict(zip(LICENSED_COLUMNS, self.lineage, strict=True)), "rows": self.rows, "accepted": self.accepted}


@dataclass(frozen=True, slots=True)
class Seal:
    """The pinned version of the completions table."""

    version: int
    ledger: Ledger
    files: tuple[SealedFile, ...]
    lineage: tuple[LineageCount, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {
            "version": self.version,
            "ledger": self.ledger.to_dict(),
            "files": [each.to_dict() for each in self.files],
            "lineage": [each.to_dict() for each in self.lineage],
        }


def read_ledger(uri: str, planned_rows: int) -> Ledger:
    """The ledger, from the log's statistics alone: no data file is opened."""
    return _count(list(shard_files(DeltaTable(uri))), planned_rows)


def read_rows_by_teacher(uri: str) -> dict[str, dict[str, int]]:
    """Accepted, rejected and failed rows of each teacher, from the log alone."""
    files: dict[str, list[ShardFile]] = {}
    for file in shard_files(DeltaTable(uri)):
        files.setdefault(file.teacher or ONLY_TEACHER, []).append(file)
    counts = {}
    for teacher, those in sorted(files.items()):
        ledger = _count(those, 0)
        counts[teacher] = {"accepted": ledger.accepted, "rejected": ledger.rejected, "failed": ledger.failed}
    return counts


def read_tokens_by_teacher(uri: str) -> dict[str, tuple[int, int]]:
    """Prompt and completion tokens of each teacher, of all rows whatever became of them, batch by batch."""
    prompts, completions = Counter[str](), Counter[str]()
    columns = ["teacher", "num_prompt_tokens", "num_completion_tokens"]
    sums = [("num_prompt_tokens", "sum"), ("num_completion_tokens", "sum")]
    for batch in DeltaTable(uri).to_pyarrow_dataset().to_batches(columns=columns):
        for group in pa.Table.from_batches([batch]).group_by("teacher").aggregate(sums).to_pylist():
            teacher = group["teacher"] or ONLY_TEACHER
            prompts[teacher] += group["num_prompt_tokens_sum"]
            completions[teacher] += group["num_completion_tokens_sum"]
    return {teacher: (prompts[teacher], completions[teacher]) for teacher in prompts}


def read_lineage(uri: str) -> tuple[LineageCount, ...]:
    """The rows committed so far by where they came from, as a seal counts them, batch by batch."""
    rows, accepted = Counter[tuple[str | None, ...]](), Counter[tuple[str | None, ...]]()
    for batch in DeltaTable(uri).to_pyarrow_dataset().to_batches(columns=[*LICENSED_COLUMNS, "status"]):
        _count_lineage(pa.Table.from_batches([batch]), rows, accepted)
    return _in_order(rows, accepted)


def count_rows(file: ShardFile) -> dict[str, int]:
    """How many rows of a committed shard ended in each state, from the log's statistics alone."""
    ledger = _count([file], 0)
    return {
        RowStatus.ACCEPTED: ledger.accepted,
        RowStatus.REJECTED: ledger.rejected,
        RowStatus.FAILED: ledger.failed,
    }


def pending_shards(prompts_uri: str, completions_uri: str) -> Iterator[ShardFile]:
    """Planned shards that have no committed completions yet, in order."""
    done = {file.shard for file in shard_files(DeltaTable(completions_uri))}
    return (file for file in shard_files(DeltaTable(prompts_uri)) if file.shard not in done)


def seal(
    prompts_uri: str,
    completions_uri: str,
    samples_per_prompt: int,
    look: Callable[[pq.ParquetFile], None] = lambda _: None,
) -> Seal:
    """Check that each planned row is there exactly once, and pin the table version with digests.

    ``look`` is shown each file while it is open, for what else is to be learnt of its rows.

    Raises:
        UserError: rows are missing, doubled or unplanned; names the first of them.
    """
    table = DeltaTable(completions_uri)
    committed = list(shard_files(table))
    completed = {file.shard: file for file in committed}
    plan = list(shard_files(DeltaTable(prompts_uri)))
    if len(completed) < len(committed):
        double = next(each for each in committed if completed[each.shard] is not each)
        ids = _ids(_read_sealed(f"{completions_uri}/{double.path}", lambda _: None)[1])
        raise UserError(
            f"{completions_uri}: shard {double.shard} is there twice, with rows {ids[:NAMED_IDS]}; do not train on it, "
            "and please report this"
        )
    if unplanned := sorted(completed.keys() - {each.shard for each in plan}):
        raise UserError(f"{completions_uri}: shards {unplanned[:NAMED_IDS]} are of another plan; do not train on it")
    files, rows, accepted = [], Counter[tuple[str | None, ...]](), Counter[tuple[str | None, ...]]()
    for planned in plan:
        file = completed.get(planned.shard)
        wanted = read_shard(prompts_uri, planned.path).column("prompt_id").to_pylist()
        if file is None:
            missing = [(prompt_id, index) for prompt_id in wanted[:NAMED_IDS] for index in range(samples_per_prompt)]
            raise UserError(
                f"{completions_uri}: shard {planned.shard} ({planned.num_rows * samples_per_prompt} rows, "
                f"{missing[:NAMED_IDS]} and so on) has not been made yet; run `stillhouse generate` again"
            )
        digests, columns = _read_sealed(f"{completions_uri}/{file.path}", look)
        _check_ids(_ids(columns), wanted, samples_per_prompt, file)
        _count_lineage(columns, rows, accepted)
        files.append(SealedFile(file.path, file.num_rows, digests))
    planned_rows = sum(each.num_rows for each in plan) * samples_per_prompt
    ledger = _count(list(completed.values()), planned_rows)
    return Seal(table.version(), ledger, tuple(files), _in_order(rows, accepted))


def _count(files: list[ShardFile], planned_rows: int) -> Ledger:
    accepted = sum(file.nulls["reason"] for file in files)
    failed = sum(file.nulls["completion"] for file in files)
    total = sum(file.num_rows for file in files)
    return Ledger(planned_rows, accepted, total - accepted - failed, failed)


def _read_sealed(path: str, look: Callable[[pq.ParquetFile], None]) -> tuple[dict[str, Any], pa.Table]:
    """A file's digests, and the columns that sealing looks at: ids, states, and what the policy decides on."""
    with fsspec.open(path, "rb") as file:
        digests = describe_one_of_many(file)
        file.seek(0)
        parquet = pq.ParquetFile(file)
        known = [name for name in LICENSED_COLUMNS if name in parquet.schema_arrow.names]
        columns = parquet.read(columns=["prompt_id", "sample_index", "status", *known])
        look(parquet)
        return digests, columns


def _ids(columns: pa.Table) -> list[tuple[str, int]]:
    return list(zip(columns["prompt_id"].to_pylist(), columns["sample_index"].to_pylist(), strict=True))


def _count_lineage(
    columns: pa.Table, rows: Counter[tuple[str | None, ...]], accepted: Counter[tuple[str | None, ...]]
) -> None:
    known = [name for name in LICENSED_COLUMNS if name in columns.column_names]
    for group in columns.group_by([*known, "status"]).aggregate([([], "count_all")]).to_pylist():
        values = tuple(group.get(name) for name in LICENSED_COLUMNS)
        rows[values] += group["count_all"]
        accepted[values] += group["count_all"] if group["status"] == RowStatus.ACCEPTED else 0


def _in_order(
    rows: Counter[tuple[str | None, ...]], accepted: Counter[tuple[str | None, ...]]
) -> tuple[LineageCount, ...]:
    return tuple(LineageCount(values, number, accepted[values]) for values, number in sorted(rows.items(), key=str))


def _check_ids(found: list[tuple[str, int]], planned: list[str], samples: int, file: ShardFile) -> None:
    wanted = {(prompt_id, index) for prompt_id in planned for index in range(samples)}
    present = set(found)
    for what, rows in (
        ("missing", wanted - present),
        ("not planned", present - wanted),
        ("doubled", {row for row in present if found.count(row) > 1} if len(present) < len(found) else set()),
    ):
        if rows:
            raise UserError(f"shard {file.shard} ({file.path}) has rows {what}: {sorted(rows)[:NAMED_IDS]}")
