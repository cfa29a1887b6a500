"""Around the commit, in one process: every place to die at, races, lost answers, later commands, leftovers."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from deltalake import DeltaTable

from configs.errors import DeadlineExceeded, UserError
from configs.table import COMPLETIONS_SCHEMA
from services.dataset import pending_shards, read_ledger
from services.table import WRITER, TableWriter, remove_orphans, shard_files, write_file
from tests.chaos import checks
from tests.chaos.driver import DriverJob, make_prompts, plan, tasks
from tests.chaos.harness import assert_exactly_once
from tests.chaos.local import Crash, Store, local_job, make_shards, seal_run, store, stream

__all__ = ["store"]  # the fixture
pytestmark = pytest.mark.chaos

DAY_S = 24 * 3600.0
LOG_CHECKPOINT_EVERY = 100  # delta-rs's own


def test_crash_at_every_change_of_the_store_resumes_exactly_once(tmp_path: Path, store: Store) -> None:
    # The plan: claim, three shards, their commit. The completions: claim, three times upload and commit.
    assert checks.check_crash_at_every_change(tmp_path, store) == 1 + 3 + 1 + 1 + 2 * 3


def test_racing_commands_commit_a_shard_once(tmp_path: Path, store: Store) -> None:
    # Not stopped is the command that has not claimed yet: it finds everything done.
    assert checks.check_race(tmp_path, store) >= 6


def test_shard_that_another_command_made_is_counted_and_not_made(tmp_path: Path, store: Store) -> None:
    checks.check_task_of_another_command(tmp_path)


def test_task_that_is_run_again_is_committed_once(tmp_path: Path, store: Store) -> None:
    checks.check_retried_task(tmp_path)


def test_lost_acknowledgement_is_found_in_the_log(tmp_path: Path, store: Store) -> None:
    checks.check_lost_acknowledgement(tmp_path)


def test_refused_prompt_fails_alone_with_its_reason(tmp_path: Path, store: Store) -> None:
    checks.check_errors_are_failed_rows(tmp_path)


def test_plan_holds_no_ids_in_memory(tmp_path: Path) -> None:
    checks.check_memory_of_plan(tmp_path)


def test_ledger_balances_after_every_shard(tmp_path: Path, store: Store) -> None:
    job = local_job(tmp_path, samples=2)
    plan(job)
    for done, _ in enumerate(stream(job, tasks(job)), start=1):
        ledger = read_ledger(job.completions_uri, 48)
        pending = sum(shard.num_rows for shard in pending_shards(job.prompts_uri, job.completions_uri)) * 2
        assert ledger.planned == 48 == ledger.accepted + ledger.rejected + ledger.failed + pending
        assert ledger.pending == pending == 48 - 8 * done


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
    shards = stream(job, tasks(job))
    next(shards)
    TableWriter(job.completions_uri, COMPLETIONS_SCHEMA, 5)
    with pytest.raises(UserError, match=r"a later command works on this run \(number 2, and this is number 1\)"):
        list(shards)
    assert read_ledger(job.completions_uri, 24).pending == 16
    make_shards(job)
    checks.check_answers(job)


def test_silence_is_reported_long_before_the_run_gives_up(tmp_path: Path, store: Store) -> None:
    store.teacher.delay_s = 60
    reports = list[tuple[float, int]]()
    with pytest.raises(UserError, match=r"\(deadlines.no_progress\)"):  # the client's or the pipeline's own
        _wait_in_vain(local_job(tmp_path, no_progress_s=1.0), lambda *report: reports.append(report))
    assert [round(10 * silent_s) for silent_s, _ in reports[:9]] == list(range(1, 10))
    assert {shards for _, shards in reports} == {3}


def test_command_that_waits_for_its_teacher_notices_a_later_one(tmp_path: Path, store: Store) -> None:
    store.teacher.delay_s = 60
    job, reports = local_job(tmp_path, no_progress_s=2.0), list[float]()

    def claim_at_first(silent_s: float, _: int) -> None:
        reports.append(silent_s)
        TableWriter(job.completions_uri, COMPLETIONS_SCHEMA, 5)

    with pytest.raises(UserError, match="a later command works on this run"):
        _wait_in_vain(job, claim_at_first)
    assert reports == [pytest.approx(0.2)]


def _wait_in_vain(job: DriverJob, on_silence: Callable[[float, int], None]) -> None:
    plan(job)
    list(stream(job, tasks(job), on_silence))


def test_store_that_refuses_every_commit_ends_with_a_sentence(tmp_path: Path, store: Store) -> None:
    job = local_job(tmp_path, num_prompts=8, commit_deadline_s=0.2)
    plan(job)
    store.restart()
    store.before_change.append(lambda now: _fill_disk(now > 2))  # the claim and the upload may pass
    with pytest.raises(
        DeadlineExceeded, match=r"1 shards could not be committed in 0 s \(deadlines.commit\): No space"
    ):
        list(stream(job, tasks(job)))


def test_store_that_refuses_every_upload_ends_with_a_sentence(tmp_path: Path, store: Store) -> None:
    job = local_job(tmp_path, num_prompts=8, commit_deadline_s=0.2)
    plan(job)
    store.restart()
    store.before_change.append(lambda now: _fill_disk(now > 1))
    with pytest.raises(UserError, match=r"shard 0 could not be stored in 0 s \(deadlines.commit\): No space"):
        list(stream(job, tasks(job)))


def _fill_disk(is_full: bool) -> None:
    if is_full:
        raise OSError("No space left on device")


def test_later_command_is_known_behind_checkpoints_of_the_log(tmp_path: Path, store: Store) -> None:
    job = local_job(tmp_path, num_prompts=8)
    plan(job)
    writers = [TableWriter(job.completions_uri, COMPLETIONS_SCHEMA, 5) for _ in range(LOG_CHECKPOINT_EVERY + 1)]
    assert list((tmp_path / "completions" / "_delta_log").glob("*.checkpoint.parquet"))
    assert DeltaTable(job.completions_uri).transaction_version(WRITER) == writers[-1].number == len(writers)
    with pytest.raises(UserError, match="a later command works on this run"):
        writers[0].add([])


def test_orphans_are_removed_after_their_grace_and_by_the_log_alone(tmp_path: Path, store: Store) -> None:
    job = local_job(tmp_path)
    for crash_before in (7, 3):  # at first before the commit of a shard: its upload is there
        store.restart(crash_before)
        with pytest.raises(Crash):
            make_shards(job)
    store.restart()
    make_shards(job)
    table = Path(job.completions_uri)
    committed = {file.path for file in shard_files(DeltaTable(job.completions_uri))}
    orphans = {file.name for file in table.glob("*.parquet")} - committed
    assert orphans
    assert remove_orphans(job.completions_uri, DAY_S) == []
    for file in table.glob("*.parquet"):
        os.utime(file, (time.time() - 2 * DAY_S,) * 2)
    fresh = write_file(job.completions_uri, COMPLETIONS_SCHEMA.empty_table(), 0, {}, 5)
    assert set(remove_orphans(job.completions_uri, DAY_S)) == orphans
    assert {file.name for file in table.glob("*.parquet")} == committed | {fresh.path}
    seal_run(job)
    assert_exactly_once(job)


def test_seal_names_what_is_missing(tmp_path: Path, store: Store) -> None:
    job = local_job(tmp_path)
    make_shards(job, limit=2)
    with pytest.raises(UserError, match=r"shard 2 \(8 rows, \[\('[0-9a-f]{32}', 0\), .* has not been made yet"):
        seal_run(job)
