"""Known bugs, put back one at a time: the check that is there against each must go red, and is green without it."""

import glob
import inspect
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import Schema
from deltalake.transaction import AddAction

import services.client
import services.pipeline
import services.plan
import services.table
from configs.table import COMPLETIONS_SCHEMA, RowStatus
from services.acceptance import failed_rows
from services.client import ShardClient
from services.table import TableWriter, write_file
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
    waiting, add = list[str](), TableWriter.add

    def write_later(uri: str, *arguments: Any) -> AddAction:
        action = write_file(uri, *arguments)
        waiting.append(f"{uri}/{action.path}")
        os.rename(waiting[-1], f"{waiting[-1]}.later")
        return action

    def commit_first(self: TableWriter, files: list[AddAction]) -> None:
        add(self, files)
        while waiting:
            store.change()
            path = waiting.pop()
            os.rename(f"{path}.later", path)

    monkeypatch.setattr(services.client, "write_file", write_later)
    monkeypatch.setattr(TableWriter, "add", commit_first)
    assert is_red(checks.check_crash_at_every_change, tmp_path, store)


def test_delete_by_prefix_is_caught(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def clean_up_and_write(uri: str, rows: pa.Table, shard: int, *arguments: Any) -> AddAction:
        for leftover in glob.glob(f"{uri}/shard-{shard:06d}-*.parquet"):
            os.unlink(leftover)
        return write_file(uri, rows, shard, *arguments)

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


def test_resume_without_checking_the_log_is_caught(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = TableWriter.files
    monkeypatch.setattr(TableWriter, "files", lambda self: iter(()) if is_completions(self) else files(self))
    assert is_red(lambda directory, _: checks.check_task_of_another_command(directory), tmp_path, store)


def test_retry_without_checking_what_is_committed_is_caught(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = inspect.getsource(services.pipeline.stream_shards)
    mutant = source.replace(" if key in waiting}", "}")
    assert mutant != source
    monkeypatch.setattr(services.pipeline, "stream_shards", services.pipeline.stream_shards)  # put back afterwards
    exec(mutant, vars(services.pipeline))
    assert is_red(lambda directory, _: checks.check_retried_task(directory), tmp_path, store)


def test_commit_without_the_writers_transaction_is_caught(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    transact = TableWriter._transact

    def claim_or_add(self: TableWriter, files: list[AddAction]) -> None:
        if not files:
            transact(self, files)
            return
        store.change()
        self._table.create_write_transaction([*files], "append", Schema.from_arrow(self._schema))

    monkeypatch.setattr(TableWriter, "_transact", claim_or_add)
    assert is_red(checks.check_race, tmp_path, store)


def test_lost_acknowledgement_that_is_committed_again_is_caught(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services.table, "_has_files", lambda *_: False)
    assert is_red(lambda directory, _: checks.check_lost_acknowledgement(directory), tmp_path, store)


def test_lost_acknowledgement_that_is_stored_again_is_caught(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def add_or_store_again(self: TableWriter, files: list[AddAction]) -> None:
        try:
            self._transact(files)
        except OSError:
            self._transact([_stored_again(self._uri, file) for file in files])

    monkeypatch.setattr(TableWriter, "add", add_or_store_again)
    assert is_red(lambda directory, _: checks.check_lost_acknowledgement(directory), tmp_path, store)


def _stored_again(uri: str, file: AddAction) -> AddAction:
    os.link(f"{uri}/{file.path}", f"{uri}/again-{file.path}")
    return replace(file, path=f"again-{file.path}")


def is_completions(writer: TableWriter) -> bool:
    return writer._schema is COMPLETIONS_SCHEMA


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
    checks.check_task_of_another_command(tmp_path / "task")
    checks.check_retried_task(tmp_path / "retried")
    checks.check_lost_acknowledgement(tmp_path / "lost")
    checks.check_errors_are_failed_rows(tmp_path / "errors")
    checks.check_memory_of_plan(tmp_path / "memory")
