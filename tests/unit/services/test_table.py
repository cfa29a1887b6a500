"""A shard is committed exactly once, whatever the store answers and whoever else writes."""

import json
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError
from fsspec.implementations.memory import MemoryFileSystem

from configs.errors import DeadlineExceeded, UserError
from configs.table import COMPLETIONS_SCHEMA, RowStatus
from services.acceptance import rows_to_table
from services.table import (
    claim,
    commit,
    is_committed,
    open_or_create,
    remove_orphans,
    require_newest,
    require_put_if_absent,
    shard_files,
    write_file,
)
from tests.unit.services.shards import DEADLINE_S, commit_rows, make_row, make_rows

pytestmark = pytest.mark.unit

IDS = ["a", "b", "c"]


def write(uri: Path, prompt_ids: list[str] = IDS, shard: int = 0) -> Any:
    return write_file(str(uri), rows_to_table(make_rows(prompt_ids, 1, shard)), shard, {"who": "test"})


def try_commit(uri: Path, action: Any, app_id: str = "shard-0", deadline_s: float = DEADLINE_S) -> bool:
    return commit(str(uri), COMPLETIONS_SCHEMA, [action], app_id, deadline_s)


def prompt_ids(uri: Path) -> list[str]:
    return sorted(DeltaTable(str(uri)).to_pyarrow_table().column("prompt_id").to_pylist())


@pytest.fixture
def uri(tmp_path: Path) -> Path:
    open_or_create(str(tmp_path / "table"), COMPLETIONS_SCHEMA, "completions")
    return tmp_path / "table"


Store = Callable[[Callable[[], None], int], None]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Callable[[Store], None]:
    """Puts a store of the test's making before the real one: it is given the real write and the number of the try."""

    def put(behave: Store) -> None:
        real, tries = DeltaTable.create_write_transaction, []

        def create_write_transaction(self: DeltaTable, *args: Any, **kwargs: Any) -> None:
            tries.append(None)
            behave(lambda: real(self, *args, **kwargs), len(tries))

        monkeypatch.setattr(DeltaTable, "create_write_transaction", create_write_transaction)

    return put


def test_open_or_create_keeps_a_table_that_is_there(uri: Path) -> None:
    commit_rows(uri, make_rows(IDS))
    assert open_or_create(str(uri), COMPLETIONS_SCHEMA, "completions").version() == 1
    assert prompt_ids(uri) == IDS


def test_written_file_is_seen_only_after_its_commit(uri: Path) -> None:
    action = write(uri)
    assert prompt_ids(uri) == []
    assert try_commit(uri, action)
    assert prompt_ids(uri) == IDS


def test_written_file_has_the_schema_and_the_footer(uri: Path) -> None:
    action = write(uri)
    schema = pq.read_schema(uri / action.path)
    assert schema.remove_metadata().equals(COMPLETIONS_SCHEMA)
    assert schema.metadata[b"who"] == b"test"
    assert action.size == (uri / action.path).stat().st_size


def test_second_attempt_at_a_shard_changes_nothing(uri: Path) -> None:
    assert try_commit(uri, write(uri))
    version = DeltaTable(str(uri)).version()
    assert not try_commit(uri, write(uri))
    assert DeltaTable(str(uri)).version() == version
    assert prompt_ids(uri) == IDS


def test_is_committed_tells_shards_apart(uri: Path) -> None:
    assert not is_committed(DeltaTable(str(uri)), "shard-0")
    try_commit(uri, write(uri))
    assert is_committed(DeltaTable(str(uri)), "shard-0")
    assert not is_committed(DeltaTable(str(uri)), "shard-1")


def test_commit_with_several_files_adds_all_or_none(uri: Path) -> None:
    actions = [write(uri, ["a"], 0), write(uri, ["b"], 1)]
    assert commit(str(uri), COMPLETIONS_SCHEMA, actions, "plan-0", DEADLINE_S)
    assert not commit(str(uri), COMPLETIONS_SCHEMA, [write(uri, ["c"], 2), write(uri, ["d"], 3)], "plan-0", DEADLINE_S)
    assert prompt_ids(uri) == ["a", "b"]


@pytest.mark.parametrize("error", [OSError("connection reset"), CommitFailedError("timed out")])
def test_commit_whose_acknowledgement_is_lost_is_done(uri: Path, store: Callable[..., None], error: Exception) -> None:
    def lose_answer(write_transaction: Callable[[], None], number: int) -> None:
        write_transaction()
        raise error

    store(lose_answer)
    assert try_commit(uri, write(uri))
    assert prompt_ids(uri) == IDS
    assert DeltaTable(str(uri)).version() == 1


def test_commit_that_is_refused_at_first_is_tried_again(uri: Path, store: Callable[..., None]) -> None:
    def refuse_twice(write_transaction: Callable[[], None], number: int) -> None:
        if number <= 2:
            raise OSError("slow down")
        write_transaction()

    store(refuse_twice)
    assert try_commit(uri, write(uri))
    assert prompt_ids(uri) == IDS


def test_commit_that_another_attempt_wins_in_between_is_lost(uri: Path, store: Callable[..., None]) -> None:
    """The other attempt's transaction comes after this one has read the log and before it writes."""
    other = write(uri, ["x", "y", "z"])

    def be_overtaken(write_transaction: Callable[[], None], number: int) -> None:
        if number == 1:
            assert try_commit(uri, other)
        write_transaction()

    store(be_overtaken)
    assert not try_commit(uri, write(uri))
    assert prompt_ids(uri) == ["x", "y", "z"]


def test_commit_beside_another_shard_keeps_both(uri: Path, store: Callable[..., None]) -> None:
    other = write(uri, ["x"], shard=1)

    def be_overtaken(write_transaction: Callable[[], None], number: int) -> None:
        if number == 1:
            assert try_commit(uri, other, "shard-1")
        write_transaction()

    store(be_overtaken)
    assert try_commit(uri, write(uri))
    assert prompt_ids(uri) == ["a", "b", "c", "x"]


def test_commit_of_many_writers_at_once_lets_one_win_each_shard(uri: Path) -> None:
    shards, attempts = 3, 2
    barrier, won = threading.Barrier(shards * attempts), []

    def work(shard: int) -> None:
        action = write(uri, [f"p{shard}"], shard)
        barrier.wait()
        if try_commit(uri, action, f"shard-{shard}"):
            won.append((shard, action.path))

    threads = [threading.Thread(target=work, args=(n % shards,)) for n in range(shards * attempts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(shard for shard, _ in won) == [0, 1, 2]
    assert sorted((file.shard, file.path) for file in shard_files(DeltaTable(str(uri)))) == sorted(won)


def test_commit_gives_up_at_its_deadline_with_the_stores_words(uri: Path, store: Callable[..., None]) -> None:
    def refuse(write_transaction: Callable[[], None], number: int) -> None:
        raise OSError("no space left")

    store(refuse)
    with pytest.raises(DeadlineExceeded) as error:
        try_commit(uri, write(uri), deadline_s=0.05)
    for needle in (str(uri), "shard-0", "deadlines.commit", "no space left"):
        assert needle in str(error.value)
    assert prompt_ids(uri) == []


def test_commit_fault_of_ours_is_not_tried_again(uri: Path, store: Callable[..., None]) -> None:
    def fail(write_transaction: Callable[[], None], number: int) -> None:
        raise TypeError(f"try {number}")

    store(fail)
    with pytest.raises(TypeError, match="try 1"):
        try_commit(uri, write(uri))


def test_shard_files_tell_rows_and_nulls_in_order_of_the_shard(uri: Path) -> None:
    states = [RowStatus.ACCEPTED, RowStatus.ACCEPTED, RowStatus.REJECTED, RowStatus.FAILED]
    for shard in (2, 0, 1):
        rows = [make_row(f"{shard}{number}", 0, shard, state) for number, state in enumerate(states[shard:])]
        assert commit_rows(uri, rows, shard)
    files = list(shard_files(DeltaTable(str(uri))))
    assert [(file.shard, file.num_rows) for file in files] == [(0, 4), (1, 3), (2, 2)]
    assert [(file.nulls["reason"], file.nulls["completion"]) for file in files] == [(2, 1), (1, 1), (0, 1)]
    assert [file.nulls["prompt_id"] for file in files] == [0, 0, 0]
    assert all((uri / file.path).exists() for file in files)


def test_shard_files_of_an_empty_table_are_none(uri: Path) -> None:
    assert list(shard_files(DeltaTable(str(uri)))) == []


def test_shard_files_are_the_same_after_a_checkpoint_of_the_log(uri: Path) -> None:
    """delta-rs writes one every hundred commits and reads statistics from it then."""
    commit_rows(uri, [make_row("a"), make_row("b", 0, 0, RowStatus.FAILED)], 0)
    commit_rows(uri, make_rows(IDS, 1, 1), 1)
    before = list(shard_files(DeltaTable(str(uri))))
    DeltaTable(str(uri)).create_checkpoint()
    for log in (uri / "_delta_log").glob("*.json"):
        log.unlink()
    assert list(shard_files(DeltaTable(str(uri)))) == before
    assert is_committed(DeltaTable(str(uri)), "shard-1")


def test_log_carries_statistics_that_other_engines_can_use(uri: Path) -> None:
    action = write(uri, shard=7)
    statistics = json.loads(action.stats)
    assert statistics["numRecords"] == 3
    assert statistics["minValues"]["shard"] == statistics["maxValues"]["shard"] == 7
    assert (statistics["minValues"]["prompt_id"], statistics["maxValues"]["prompt_id"]) == ("a", "c")


def claim_table(uri: Path) -> int:
    return claim(str(uri), COMPLETIONS_SCHEMA, DEADLINE_S)


def try_commit_as(uri: Path, writer: int, shard: int = 0) -> bool:
    action = write(uri, [f"p{shard}"], shard)
    return commit(str(uri), COMPLETIONS_SCHEMA, [action], f"shard-{shard}", DEADLINE_S, writer=writer)


def test_claim_numbers_the_commands_in_their_order(uri: Path) -> None:
    assert [claim_table(uri) for _ in range(3)] == [1, 2, 3]
    assert prompt_ids(uri) == []


def test_claim_whose_acknowledgement_is_lost_is_newest_all_the_same(uri: Path, store: Callable[..., None]) -> None:
    def lose_answer(write_transaction: Callable[[], None], number: int) -> None:
        write_transaction()
        if number == 1:
            raise OSError("connection reset")

    store(lose_answer)
    require_newest(DeltaTable(str(uri)), claim_table(uri))


def test_claim_of_several_at_once_gives_each_a_number_of_its_own(uri: Path, store: Callable[..., None]) -> None:
    others = []

    def be_overtaken(write_transaction: Callable[[], None], number: int) -> None:
        if number == 1:
            others.append(claim_table(uri))
        write_transaction()

    store(be_overtaken)
    mine = claim_table(uri)
    assert others == [1]
    assert mine == 2


def test_commit_of_a_command_that_a_later_one_has_replaced_is_refused(uri: Path) -> None:
    first = claim_table(uri)
    assert try_commit_as(uri, first, shard=0)
    second = claim_table(uri)
    with pytest.raises(UserError, match=r"a later command works on this run \(number 2, and this is number 1\)"):
        try_commit_as(uri, first, shard=1)
    assert try_commit_as(uri, second, shard=1)
    assert prompt_ids(uri) == ["p0", "p1"]


def test_commit_that_a_later_command_overtakes_is_refused(uri: Path, store: Callable[..., None]) -> None:
    """The later command claims after this one has read the log and commits the shard that this one is about to."""
    first = claim_table(uri)

    def be_overtaken(write_transaction: Callable[[], None], number: int) -> None:
        if number == 1:
            assert try_commit_as(uri, claim_table(uri), shard=0)
        write_transaction()

    store(be_overtaken)
    assert not try_commit_as(uri, first, shard=0)
    with pytest.raises(UserError, match="a later command"):
        try_commit_as(uri, first, shard=1)
    assert prompt_ids(uri) == ["p0"]


def test_remove_orphans_leaves_what_the_log_names_and_what_is_young(uri: Path) -> None:
    commit_rows(uri, make_rows(IDS))
    orphan = uri / write(uri, shard=1).path
    assert remove_orphans(str(uri), 3600) == []
    assert orphan.exists()
    long_ago = orphan.stat().st_mtime - 3 * 3600
    os.utime(orphan, (long_ago, long_ago))
    committed = next(shard_files(DeltaTable(str(uri)))).path
    os.utime(uri / committed, (long_ago, long_ago))
    assert remove_orphans(str(uri), 3600) == [orphan.name]
    assert not orphan.exists()
    assert prompt_ids(uri) == IDS


def test_store_that_overwrites_silently_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class CarelessFileSystem(MemoryFileSystem):
        protocol = "careless"

        def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
            super().pipe_file(path, value, mode="overwrite", **kwargs)

    fsspec.register_implementation("careless", CarelessFileSystem, clobber=True)
    with pytest.raises(UserError, match="put-if-absent"):
        require_put_if_absent("careless://bucket/run/completions")
    require_put_if_absent("memory://bucket/run/completions")
    assert not any("put-if-absent" in path for path in MemoryFileSystem().find("/"))


def test_store_that_is_told_to_overwrite_is_refused(uri: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_S3_ALLOW_UNSAFE_RENAME", "true")
    with pytest.raises(UserError, match="unset AWS_S3_ALLOW_UNSAFE_RENAME"):
        require_put_if_absent(str(uri))


def test_filters_of_readers_find_the_rows_that_match(tmp_path: Path) -> None:
    import duckdb
    import polars

    uri = tmp_path / "completions"
    long = "x" * 100
    rows = [make_row(f"{n:032x}", 0, 0, RowStatus.ACCEPTED if n else RowStatus.REJECTED) for n in range(4)]
    commit_rows(uri, [replace(row, prompt=long + str(n)) for n, row in enumerate(rows)], 0)
    dataset = DeltaTable(uri).to_pyarrow_dataset()
    accepted = pc.field("status") == "accepted"
    assert dataset.to_table(filter=accepted).num_rows == 3
    assert dataset.to_table(filter=pc.field("prompt") == long + "3").num_rows == 1
    assert duckdb.sql("select count(*) from dataset where status = 'accepted'").fetchall() == [(3,)]
    assert polars.scan_delta(str(uri)).filter(polars.col("prompt") == long + "3").collect().height == 1
