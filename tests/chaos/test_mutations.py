"""Known bugs, put back one at a time: the check that is there against each must go red, and is green without it."""

import glob
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.transaction import AddAction

import services.client
import services.plan
import services.table
from configs.table import RowStatus
from services.acceptance import failed_rows
from services.client import ShardClient
from services.table import commit, write_file
from tests.chaos import checks
from tests.chaos.local import Store, store

__all__ = ["store"]  # the fixture
pytestmark = pytest.mark.chaos

Check = Callable[[Path, Store], Any]


def is_red(check: Check, directory: Path, store: Store) -> bool:
    """Whether the check says no, in whatever words."""
    try:
        check(directory, store)
    except Exception:
        return True
    return False


def test_commit_before_upload_is_caught(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting: list[tuple[pa.Table, str]] = []

    def write_later(uri: str, rows: pa.Table, *arguments: Any) -> AddAction:
        write_table = pq.write_table
        pq.write_table = lambda table, file, **options: waiting.append((table, file.name))
        try:
            return write_file(uri, rows, *arguments)
        finally:
            pq.write_table = write_table

    def commit_first(*arguments: Any, **options: Any) -> bool:
        done = commit(*arguments, **options)
        while waiting:
            pq.write_table(*waiting.pop())
        return done

    monkeypatch.setattr(services.client, "write_file", write_later)
    monkeypatch.setattr(services.client, "commit", commit_first)
    assert is_red(checks.check_crash_at_every_change, tmp_path, store)


def test_delete_by_prefix_is_caught(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def clean_up_and_write(uri: str, rows: pa.Table, shard: int, footer: dict[str, str]) -> AddAction:
        for leftover in glob.glob(f"{uri}/shard-{shard:06d}-*.parquet"):
            os.unlink(leftover)
        return write_file(uri, rows, shard, footer)

    monkeypatch.setattr(services.client, "write_file", clean_up_and_write)
    assert is_red(checks.check_race, tmp_path, store)


def test_error_recorded_as_success_is_caught(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def accept_anything(self: ShardClient, job: Any, prompt: Any, result: Any, failure: Any) -> Iterator[Any]:
        if result is not None and result.error is None:
            yield from to_rows(self, job, prompt, result, failure)
            return
        for row in failed_rows(prompt, job.sampling.n, ""):
            values = {name: getattr(row, name) for name in row.__slots__}
            yield type(row)(**(values | {"status": RowStatus.ACCEPTED, "reason": None, "completion": ""}))

    to_rows = ShardClient._to_rows
    monkeypatch.setattr(ShardClient, "_to_rows", accept_anything)
    assert is_red(lambda directory, _: checks.check_errors_are_failed_rows(directory), tmp_path, store)


def test_retry_without_checking_the_log_is_caught(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (services.table, services.client):
        monkeypatch.setattr(module, "is_committed", lambda *_: False)
    assert is_red(checks.check_retried_task, tmp_path, store)


def test_commit_without_a_transaction_is_caught(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def add_only(table: DeltaTable, schema: pa.Schema, actions: list[AddAction], transaction: Transaction) -> None:
        table.create_write_transaction([*actions], "append", schema, commit_properties=CommitProperties())

    monkeypatch.setattr(services.table, "_transact", add_only)
    assert is_red(checks.check_race, tmp_path, store)


def test_ids_kept_in_memory_is_caught(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    class KnownIds(set[str]):
        def __enter__(self) -> "KnownIds":
            return self

        def __exit__(self, *_: object) -> None:
            self.clear()

        def add(self, ids: Any) -> None:
            self.update(ids)

        def add_if_new(self, prompt_id: str) -> bool:
            is_new = prompt_id not in self
            super().add(prompt_id)
            return is_new

    monkeypatch.setattr(services.plan, "_KnownIds", KnownIds)
    assert is_red(lambda directory, _: checks.check_memory_of_plan(directory), tmp_path, store)


def test_checks_are_green_without_a_mutation(tmp_path: Path, store: Store) -> None:
    checks.check_crash_at_every_change(tmp_path / "crash", store)
    checks.check_race(tmp_path / "race", store)
    checks.check_retried_task(tmp_path / "retried", store)
    checks.check_lost_acknowledgement(tmp_path / "lost", store)
    checks.check_errors_are_failed_rows(tmp_path / "errors")
    checks.check_memory_of_plan(tmp_path / "memory")
