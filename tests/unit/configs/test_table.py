"""The contract between what writes the tables and what reads them."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, Schema

from configs.table import COMPLETIONS_SCHEMA, PROMPTS_SCHEMA, TOKEN_IDS, RowStatus

pytestmark = pytest.mark.unit

FAILED = {
    "prompt_id": "0" * 32,
    "sample_index": 0,
    "shard": 0,
    "status": "failed",
    "reason": "too long",
    "prompt": '"x"',
    "num_prompt_tokens": 0,
    "num_completion_tokens": 0,
}


@pytest.mark.parametrize("schema", [PROMPTS_SCHEMA, COMPLETIONS_SCHEMA], ids=["prompts", "completions"])
def test_schema_survives_delta_and_parquet_unchanged(schema: pa.Schema, tmp_path: Path) -> None:
    DeltaTable.create(str(tmp_path), Schema.from_arrow(schema))
    stored = DeltaTable(str(tmp_path)).schema()
    assert [field.name for field in stored.fields] == schema.names
    assert [field.nullable for field in stored.fields] == [field.nullable for field in schema]
    path = f"{tmp_path}/empty.parquet"
    pq.write_table(schema.empty_table(), path)
    assert pq.read_schema(path).equals(schema)


def test_schema_key_columns_are_never_null() -> None:
    for schema, keys in ((PROMPTS_SCHEMA, ["prompt_id", "shard"]), (COMPLETIONS_SCHEMA, ["prompt_id", "sample_index"])):
        assert not any(schema.field(key).nullable for key in keys)


def test_schema_columns_that_both_tables_have_are_the_same() -> None:
    shared = set(PROMPTS_SCHEMA.names) & set(COMPLETIONS_SCHEMA.names)
    assert shared >= {"prompt_id", "shard", "prompt", "answer"}
    assert all(PROMPTS_SCHEMA.field(name).equals(COMPLETIONS_SCHEMA.field(name)) for name in shared)


def test_schema_columns_that_the_ledger_counts_may_be_null() -> None:
    assert COMPLETIONS_SCHEMA.field("reason").nullable
    assert COMPLETIONS_SCHEMA.field("completion").nullable


def test_schema_holds_a_failed_row_without_any_answer() -> None:
    [row] = pa.Table.from_pylist([FAILED], schema=COMPLETIONS_SCHEMA).to_pylist()
    assert row["completion"] is row["completion_token_ids"] is row["finish_reason"] is None


def test_token_ids_hold_every_id_and_no_nulls() -> None:
    assert TOKEN_IDS.value_type == pa.int32()
    assert not TOKEN_IDS.value_field.nullable
    with pytest.raises(pa.ArrowInvalid):
        pa.array([[2**31]], TOKEN_IDS)


def test_row_status_has_the_three_final_states() -> None:
    assert [str(status) for status in RowStatus] == ["accepted", "rejected", "failed"]
