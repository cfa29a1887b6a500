"""Around the commit, in one process: every place to die at, races, lost answers, later commands, leftovers."""

import os
import time
from pathlib import Path

import pytest
from deltalake import DeltaTable

from configs.errors import UserError
from configs.table import COMPLETIONS_SCHEMA
from services.client import ShardClient
from services.dataset import pending_shards, read_ledger
from services.table import claim, is_committed, remove_orphans, shard_files, write_file
from tests.chaos import checks
from tests.chaos.driver import client_spec, make_prompts, plan, tasks
from tests.chaos.harness import assert_exactly_once
from tests.chaos.local import Crash, Store, local_job, make_shards, seal_run, store, to_block

__all__ = ["store"]  # the fixture
pytestmark = pytest.mark.chaos

DAY_S = 24 * 3600.0


def test_crash_at_every_change_of_the_store_resumes_exactly_once(tmp_path: Path, store: Store) -> None:
    # Three shards of plan, one commit of it, three times upload and commit.
    assert checks.check_crash_at_every_change(tmp_path, store) == 3 + 1 + 2 * 3


def test_racing_clients_commit_a_shard_once(tmp_path: Path, store: Store) -> None:
    checks.check_race(tmp_path, store)


def test_task_that_is_run_again_finds_its_shard(tmp_path: Path, store: Store) -> None:
    checks.check_retried_task(tmp_path, store)


def test_lost_acknowledgement_is_found_in_the_log(tmp_path: Path, store: Store) -> None:
    checks.check_lost_acknowledgement(tmp_path, store)


def test_refused_prompt_fails_alone_with_its_reason(tmp_path: Path, store: Store) -> None:
    checks.check_errors_are_failed_rows(tmp_path)


def test_plan_holds_no_ids_in_memory(tmp_path: Path) -> None:
    checks.check_memory_of_plan(tmp_path)


def test_ledger_balances_after_every_shard(tmp_path: Path, store: Store) -> None:
    job = local_job(tmp_path, samples=2)
    plan(job)
    for _ in range(len(tasks(job))):
        make_shards(job, limit=1)
        ledger = read_ledger(job.completions_uri, 48)
        pending = sum(shard.num_rows for shard in pending_shards(job.prompts_uri, job.completions_uri)) * 2
        assert ledger.accepted + ledger.rejected + ledger.failed + pending == 48 == ledger.planned
        assert ledger.pending == pending


def test_more_and_reordered_prompts_make_only_the_new_rows(tmp_path: Path, store: Store) -> None:
    job = local_job(tmp_path, num_prompts=16)
    make_shards(job)
    before = {file.path for file in shard_files(DeltaTable(job.completions_uri))}
    longer = local_job(tmp_path, prompts=tuple(reversed(make_prompts(24))))
    assert len(make_shards(longer)) == 1
    assert before < {file.path for file in shard_files(DeltaTable(job.completions_uri))}
    seal_run(longer)
    assert_exactly_once(longer)


def test_earlier_command_stops_when_a_later_one_claims_the_run(tmp_path: Path, store: Store) -> None:
    job = local_job(tmp_path)
    plan(job)
    spec = client_spec(job)
    spec.writers["completions"] = claim(job.completions_uri, COMPLETIONS_SCHEMA, 5)
    client, block = ShardClient(spec), to_block(tasks(job)[:2])
    # The later command comes between the first shard's upload and its commit.
    store.before_change.append(lambda change: _claim_at(change, store_before + 1, job.completions_uri))
    store_before = store.changes
    for summary in client(block).to_pylist():
        assert "a later command works on this run (number 2, and this is number 1)" in summary["error"]
    store.before_change.clear()
    assert read_ledger(job.completions_uri, 24).pending == 24
    make_shards(job)
    seal_run(job)
    assert_exactly_once(job)


def _claim_at(change: int, wanted: int, uri: str) -> None:
    if change == wanted:
        claim(uri, COMPLETIONS_SCHEMA, 5)


def test_shard_that_is_there_already_is_counted_and_not_made(tmp_path: Path, store: Store) -> None:
    job = local_job(tmp_path)
    plan(job)
    client, block = ShardClient(client_spec(job)), to_block(tasks(job)[:1])
    [first], changes = client(block).to_pylist(), store.changes
    [again] = client(block).to_pylist()
    assert store.changes == changes
    assert first["completion_tokens"] > 0 == again["completion_tokens"]
    assert (first["accepted"], first["rejected"]) == (again["accepted"], again["rejected"])


def test_store_that_refuses_every_commit_ends_with_a_sentence(tmp_path: Path, store: Store) -> None:
    job = local_job(tmp_path, num_prompts=8, commit_deadline_s=0.2)
    plan(job)
    client, block = ShardClient(client_spec(job)), to_block(tasks(job))

    def refuse(_: int) -> None:
        if store.changes > changes + 1:  # the upload may pass
            raise OSError("No space left on device")

    changes = store.changes
    store.before_change.append(refuse)
    [summary] = client(block).to_pylist()
    assert "shard-0 could not be committed in 0 s (deadlines.commit): No space left" in summary["error"]


def test_transactions_are_found_behind_checkpoints_of_the_log(tmp_path: Path, store: Store) -> None:
    job = local_job(tmp_path, num_prompts=130, shard_rows=1)
    make_shards(job)
    assert list((tmp_path / "completions" / "_delta_log").glob("*.checkpoint.parquet"))
    table = DeltaTable(job.completions_uri)
    assert all(is_committed(table, f"shard-{shard}") for shard in range(130))


def test_orphans_are_removed_after_their_grace_and_by_the_log_alone(tmp_path: Path, store: Store) -> None:
    job = local_job(tmp_path)
    for crash_before in (5, 1):  # before the first commit of a shard: the upload is there
        store.changes, store.crash_before = 0, crash_before
        with pytest.raises(Crash):
            make_shards(job)
    make_shards(job)
    table = Path(job.completions_uri)
    committed = {file.path for file in shard_files(DeltaTable(job.completions_uri))}
    orphans = {file.name for file in table.glob("*.parquet")} - committed
    assert orphans
    assert remove_orphans(job.completions_uri, DAY_S) == []
    for file in table.glob("*.parquet"):
        os.utime(file, (time.time() - 2 * DAY_S,) * 2)
    fresh = write_file(job.completions_uri, COMPLETIONS_SCHEMA.empty_table(), 0, {})
    assert set(remove_orphans(job.completions_uri, DAY_S)) == orphans
    assert {file.name for file in table.glob("*.parquet")} == committed | {fresh.path}
    seal_run(job)
    assert_exactly_once(job)


def test_seal_names_what_is_missing(tmp_path: Path, store: Store) -> None:
    job = local_job(tmp_path)
    make_shards(job, limit=2)
    with pytest.raises(UserError, match=r"shard 2 \(8 rows\) has not been made yet"):
        seal_run(job)


def test_shard_without_answers_ends_with_a_sentence(tmp_path: Path, store: Store) -> None:
    store.teacher.delay_s = 60
    job = local_job(tmp_path, num_prompts=8, no_progress_s=0.2)
    plan(job)
    [summary] = ShardClient(client_spec(job))(to_block(tasks(job))).to_pylist()
    assert (
        "was not done in 0 s (deadlines.no_progress): the teacher echo holds some of its 8 prompts" in summary["error"]
    )
