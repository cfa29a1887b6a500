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
    WRITER,
    TableWriter,
    open_or_create,
    remove_orphans,
    require_put_if_absent,
    shard_files,
    write_file,
)
from tests.unit.services.full_disk import full_disk
from tests.unit.services.shards import DEADLINE_S, commit_rows, make_row, make_rows

pytestmark = pytest.mark.unit

IDS = ["a", "b", "c"]


def write(uri: Path, prompt_ids: list[str] = IDS, shard: int = 0) -> Any:
    return write_file(str(uri), rows_to_table(make_rows(prompt_ids, 1, shard)), shard, {"who": "test"}, DEADLINE_S)


def claim(uri: Path, deadline_s: float = DEADLINE_S) -> TableWriter:
    return TableWriter(str(uri), COMPLETIONS_SCHEMA, deadline_s)


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
    assert open_or_create(str(uri), COMPLETIONS_SCHEMA, "completions").version() == 2  # a claim, a commit
    assert prompt_ids(uri) == IDS


def test_written_file_is_seen_only_after_its_commit(uri: Path) -> None:
    action = write(uri)
    assert prompt_ids(uri) == []
    claim(uri).add([action])
    assert prompt_ids(uri) == IDS


def test_written_file_has_the_schema_and_the_footer(uri: Path) -> None:
    action = write(uri)
    schema = pq.read_schema(uri / action.path)
    assert schema.remove_metadata().equals(COMPLETIONS_SCHEMA)
    assert schema.metadata[b"who"] == b"test"
    assert action.size == (uri / action.path).stat().st_size


def test_file_whose_upload_breaks_off_is_stored_again_under_another_name(
    uri: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = []

    def break_off(rows: Any, file: Any, **options: Any) -> None:
        names.append(Path(file.name).name)
        write_table(rows, file, **options)
        if len(names) == 1:
            raise OSError("connection reset")

    write_table = pq.write_table
    monkeypatch.setattr(pq, "write_table", break_off)
    action = write(uri)
    assert (names[1], names[0]) == (action.path, *set(names) - {action.path})
    assert [file.name for file in uri.glob("*.parquet")] == [action.path]
    claim(uri).add([action])
    assert prompt_ids(uri) == IDS


def test_file_that_cannot_be_stored_ends_with_the_stores_words(uri: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(pq, "write_table", refuse)
    with pytest.raises(DeadlineExceeded, match=r"shard 3 could not be stored .* No space left"):
        write_file(str(uri), rows_to_table(make_rows(IDS)), 3, {}, 0.05)


def test_file_that_does_not_fit_leaves_nothing_behind_however_often_it_is_tried(uri: Path) -> None:
    table, size = rows_to_table(make_rows(IDS)), 1000
    with full_disk(size), pytest.raises(DeadlineExceeded, match="could not be stored"):
        write_file(str(uri), table, 3, {"long": "x" * 2 * size}, 0.05)
    assert list(uri.glob("*.parquet")) == []


def test_upload_that_breaks_off_leaves_nothing_in_an_object_store(monkeypatch: pytest.MonkeyPatch) -> None:
    def break_off(_: Any, file: Any, **__: Any) -> None:
        file.write(b"PAR1 and no more")
        raise OSError("connection reset")

    monkeypatch.setattr(pq, "write_table", break_off)
    with pytest.raises(DeadlineExceeded, match="connection reset"):
        write_file("memory://bucket/full/completions", rows_to_table(make_rows(IDS)), 3, {}, 0.05)
    assert not any("shard-" in path for path in MemoryFileSystem().find("/bucket/full"))


def test_several_files_are_added_at_once(uri: Path) -> None:
    writer = claim(uri)
    writer.add([write(uri, ["a"], 0), write(uri, ["b"], 1)])
    assert DeltaTable(str(uri)).version() == 2  # the claim, and one commit
    assert prompt_ids(uri) == ["a", "b"]
    assert [file.shard for file in writer.files()] == [0, 1]


@pytest.mark.parametrize("error", [OSError("connection reset"), CommitFailedError("timed out")])
def test_commit_whose_acknowledgement_is_lost_is_done(uri: Path, store: Callable[..., None], error: Exception) -> None:
    def lose_answer(write_transaction: Callable[[], None], number: int) -> None:
        write_transaction()
        raise error

    writer = claim(uri)
    store(lose_answer)
    writer.add([write(uri)])
    assert prompt_ids(uri) == IDS
    assert DeltaTable(str(uri)).version() == 2


def test_commit_that_is_refused_at_first_is_tried_again(uri: Path, store: Callable[..., None]) -> None:
    def refuse_twice(write_transaction: Callable[[], None], number: int) -> None:
        if number <= 2:
            raise OSError("slow down")
        write_transaction()

    writer = claim(uri)
    store(refuse_twice)
    writer.add([write(uri)])
    assert prompt_ids(uri) == IDS


def test_commit_gives_up_at_its_deadline_with_the_stores_words(uri: Path, store: Callable[..., None]) -> None:
    def refuse(write_transaction: Callable[[], None], number: int) -> None:
        raise OSError("no space left")

    writer = claim(uri, deadline_s=0.05)
    store(refuse)
    with pytest.raises(DeadlineExceeded) as error:
        writer.add([write(uri)])
    for needle in (str(uri), "1 shards", "deadlines.commit", "no space left"):
        assert needle in str(error.value)
    assert prompt_ids(uri) == []


def test_commit_fault_of_ours_is_not_tried_again(uri: Path, store: Callable[..., None]) -> None:
    def fail(write_transaction: Callable[[], None], number: int) -> None:
        raise TypeError(f"try {number}")

    writer = claim(uri)
    store(fail)
    with pytest.raises(TypeError, match="try 1"):
        writer.add([write(uri)])


def test_shard_files_tell_rows_and_nulls_in_order_of_the_shard(uri: Path) -> None:
    states = [RowStatus.ACCEPTED, RowStatus.ACCEPTED, RowStatus.REJECTED, RowStatus.FAILED]
    for shard in (2, 0, 1):
        rows = [make_row(f"{shard}{number}", 0, shard, state) for number, state in enumerate(states[shard:])]
        commit_rows(uri, rows, shard)
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
    assert DeltaTable(str(uri)).transaction_version(WRITER) == 2


def test_log_carries_statistics_that_other_engines_can_use(uri: Path) -> None:
    action = write(uri, shard=7)
    statistics = json.loads(action.stats)
    assert statistics["numRecords"] == 3
    assert statistics["minValues"]["shard"] == statistics["maxValues"]["shard"] == 7
    assert (statistics["minValues"]["prompt_id"], statistics["maxValues"]["prompt_id"]) == ("a", "c")


def test_claim_numbers_the_commands_in_their_order(uri: Path) -> None:
    assert [claim(uri).number for _ in range(3)] == [1, 2, 3]
    assert prompt_ids(uri) == []


def test_claim_whose_acknowledgement_is_lost_is_newest_all_the_same(uri: Path, store: Callable[..., None]) -> None:
    def lose_answer(write_transaction: Callable[[], None], number: int) -> None:
        write_transaction()
        if number == 1:
            raise OSError("connection reset")

    store(lose_answer)
    claim(uri).require_newest()


def test_claim_of_several_at_once_gives_each_a_number_of_its_own(uri: Path, store: Callable[..., None]) -> None:
    others = []

    def be_overtaken(write_transaction: Callable[[], None], number: int) -> None:
        if number == 1:
            others.append(claim(uri).number)
        write_transaction()

    store(be_overtaken)
    mine = claim(uri)
    assert others == [1]
    assert mine.number == 2


def test_commit_of_a_command_that_a_later_one_has_replaced_is_refused(uri: Path) -> None:
    first = claim(uri)
    first.add([write(uri, ["p0"], 0)])
    second = claim(uri)
    with pytest.raises(UserError, match=r"a later command works on this run \(number 2, and this is number 1\)"):
        first.add([write(uri, ["p1"], 1)])
    with pytest.raises(UserError, match="a later command"):
        first.require_newest()
    second.add([write(uri, ["p1"], 1)])
    assert prompt_ids(uri) == ["p0", "p1"]


@pytest.mark.parametrize("is_quick", [False, True])
def test_commit_that_a_later_command_overtakes_is_refused(
    uri: Path, store: Callable[..., None], is_quick: bool
) -> None:
    """The later command claims after this one has read the log, and may even add the same shard."""
    first, later = claim(uri), []

    def be_overtaken(write_transaction: Callable[[], None], number: int) -> None:
        if number == 1:
            later.append(claim(uri))
            if is_quick:
                later[0].add([write(uri, ["p0"])])
        write_transaction()

    store(be_overtaken)
    with pytest.raises(UserError, match="a later command"):
        first.add([write(uri, ["p0"])])
    assert prompt_ids(uri) == (["p0"] if is_quick else [])


def test_of_many_writers_at_once_the_last_to_claim_adds_its_shard(uri: Path) -> None:
    barrier, outcomes = threading.Barrier(4), {}

    def work(shard: int) -> None:
        action = write(uri, [f"p{shard}"], shard)
        barrier.wait()
        writer = claim(uri)
        try:
            writer.add([action])
            outcomes[writer.number] = action.path
        except UserError:
            outcomes[writer.number] = None

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == [1, 2, 3, 4]
    assert outcomes[4] is not None
    added = {path for path in outcomes.values() if path is not None}
    assert {file.path for file in shard_files(DeltaTable(str(uri)))} == added


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
