"""Planned prompts and committed rows without a teacher: what the tables' tests are made of."""

from collections.abc import Sequence
from pathlib import Path

from deltalake import DeltaTable

from configs.table import COMPLETIONS_SCHEMA, RowStatus
from services.acceptance import Row, rows_to_table
from services.lineage import NO_LINEAGE, Lineage
from services.plan import Plan, extend_plan, read_shard
from services.prompts import Prompt, make_prompt
from services.table import TableWriter, open_or_create, shard_files, write_file

DEADLINE_S = 5.0


def make_prompts(count: int, start: int = 0) -> list[Prompt]:
    return [make_prompt(f"{number}+{number}=", str(2 * number)) for number in range(start, start + count)]


def make_plan(uri: Path, prompts: Sequence[Prompt], *, samples: int = 1, shard_rows: int = 4) -> Plan:
    return extend_plan(
        str(uri), prompts, samples_per_prompt=samples, shard_rows=shard_rows, commit_deadline_s=DEADLINE_S
    )


def planned_ids(uri: Path) -> list[list[str]]:
    """Prompt ids of each shard, in order."""
    files = shard_files(DeltaTable(str(uri)))
    return [read_shard(str(uri), file.path).column("prompt_id").to_pylist() for file in files]


def make_row(prompt_id: str, sample_index: int = 0, shard: int = 0, status: RowStatus = RowStatus.ACCEPTED) -> Row:
    """A row in the given state, as `services.acceptance` would make it."""
    failed = status is RowStatus.FAILED
    return Row(
        prompt_id,
        sample_index,
        shard,
        status,
        reason=None if status is RowStatus.ACCEPTED else f"was {status}",
        prompt='"1+1="',
        completion=None if failed else "2",
        answer="2",
        finish_reason=None if failed else "stop",
        num_prompt_tokens=3,
        num_completion_tokens=0 if failed else 2,
        prompt_token_ids=[1, 2, 3],
        completion_token_ids=None if failed else [4, 5],
    )


def make_rows(prompt_ids: Sequence[str], samples: int = 1, shard: int = 0) -> list[Row]:
    return [make_row(prompt_id, index, shard) for prompt_id in prompt_ids for index in range(samples)]


def commit_rows(
    uri: Path, rows: list[Row], shard: int = 0, teacher: str = "teacher", lineage: Lineage = NO_LINEAGE
) -> None:
    """Store one shard of completions and add it to the table, which is made when it is missing."""
    open_or_create(str(uri), COMPLETIONS_SCHEMA, "completions")
    action = write_file(str(uri), rows_to_table(rows, teacher, lineage), shard, {}, DEADLINE_S)
    TableWriter(str(uri), COMPLETIONS_SCHEMA, DEADLINE_S).add([action])


def commit_plan(prompts: Path, completions: Path, samples: int = 1, skip: Sequence[int] = ()) -> None:
    """Accept every planned row, except for those of skipped shards."""
    open_or_create(str(completions), COMPLETIONS_SCHEMA, "completions")
    for shard, prompt_ids in enumerate(planned_ids(prompts)):
        if shard not in skip:
            commit_rows(completions, make_rows(prompt_ids, samples, shard), shard)
