"""What must hold of a run whatever happens, as functions that raise; the mutation suite turns each of them red."""

import tracemalloc
from collections.abc import Callable, Iterable
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

from deltalake import DeltaTable
from deltalake.transaction import AddAction

from configs.errors import UserError
from services.plan import extend_plan
from services.prompts import make_prompt
from services.table import TableWriter, shard_files
from tests.chaos.clients import REFUSED
from tests.chaos.driver import DriverJob, make_prompts, plan, tasks
from tests.chaos.harness import assert_exactly_once, read_completions
from tests.chaos.local import Crash, Store, local_job, make_shards, seal_run, stream

BYTES_A_ROW = 40.0  # an id in a Python set takes more than a hundred
SENTENCES = ("a later command works on this run", "another process planned the same run")


def check_answers(job: DriverJob) -> None:
    """Sealed, nothing pending, nothing failed, and every row with its answer."""
    ledger = seal_run(job).ledger
    assert (ledger.planned, ledger.pending, ledger.failed) == (len(job.prompts) * job.samples, 0, 0)
    assert_exactly_once(job)


def check_crash_at_every_change(directory: Path | str, store: Store) -> int:
    """Die before every change of the store in turn and resume each time; returns how many places there were."""
    for crash_before in count():
        job = local_job(f"{directory}/crash-{crash_before}")
        store.restart(crash_before)
        try:
            make_shards(job)
        except Crash:
            store.restart()
            make_shards(job)
        else:
            store.restart()
            return crash_before
        check_answers(job)
    raise AssertionError("unreachable")


def check_race(directory: Path | str, store: Store, moments: Iterable[int] | None = None) -> int:
    """Right before every change of the store in turn another command makes the whole run; returns how many stopped."""
    refusals = list[str]()
    for moment in moments or count(1):
        job = local_job(f"{directory}/{moment}", num_prompts=16)
        store.restart()
        store.before_change[:] = [_at(moment, lambda: make_shards(job))]  # noqa: B023
        try:
            make_shards(job)
        except UserError as error:
            refusals.append(str(error))
        finally:
            store.before_change.clear()
        check_answers(job)
        if store.changes < moment:
            break
    assert all(any(sentence in each for sentence in SENTENCES) for each in refusals), refusals
    return len(refusals)


def check_task_of_another_command(directory: Path | str) -> None:
    """What another command has made since this one looked is counted and not made again."""
    job = local_job(directory, num_prompts=16)
    plan(job)
    todo, made = tasks(job), make_shards(job)
    again = list(stream(job, todo))
    check_answers(job)
    assert [each["completion_tokens"] > 0 for each in made + again] == [True, True, False, False]
    assert [each["accepted"] for each in again] == [each["accepted"] for each in made]


def check_retried_task(directory: Path | str) -> None:
    """A task whose reply was lost is run again by Ray: its second file is garbage."""
    job = local_job(directory, num_prompts=16)
    plan(job)
    first, second = tasks(job)
    assert [each["shard"] for each in stream(job, [first, first, second])] == [0, 1]
    assert len(list(Path(job.completions_uri).glob("*.parquet"))) == 3
    check_answers(job)


def check_lost_acknowledgement(directory: Path | str) -> None:
    """A commit that is applied, but whose answer is an error, is found in the log and not done again."""
    job = local_job(directory, num_prompts=16)
    plan(job)
    real, errors = TableWriter._transact, iter([OSError("the connection was reset")])
    commits = list[int]()

    def lose_answer(self: TableWriter, files: list[AddAction]) -> None:
        real(self, files)
        commits.append(len(files))
        if files and (error := next(errors, None)) is not None:
            raise error

    with patch.object(TableWriter, "_transact", lose_answer):
        summaries = list(stream(job, tasks(job)))
    check_answers(job)
    assert [each["shard"] for each in summaries] == [0, 1]
    assert commits == [0, 1, 1]
    assert len(list(shard_files(DeltaTable(job.completions_uri)))) == 2


def check_errors_are_failed_rows(directory: Path | str) -> None:
    """A prompt that the teacher refuses becomes failed rows with the reason, its neighbours are answered."""
    job = local_job(directory, samples=2, prompts=(*make_prompts(7), REFUSED))
    make_shards(job)
    refused = make_prompt(REFUSED).prompt_id
    rows = [row for row in read_completions(job) if row["prompt_id"] == refused]
    assert [(row["status"], row["reason"], row["completion"]) for row in rows] == [
        ("failed", "the echo refuses this prompt", None)
    ] * 2
    assert seal_run(job).ledger.failed == 2


def check_memory_of_plan(directory: Path | str) -> float:
    """Bytes of Python objects that planning one more row takes, between two sizes of a plan."""
    small, large = (_peak_of_plan(f"{directory}/{size}", size) for size in (2_000, 20_000))
    bytes_a_row = (large - small) / 18_000
    assert bytes_a_row < BYTES_A_ROW, f"planning takes {bytes_a_row:.0f} bytes a row"
    return bytes_a_row


def _at(moment: int, call: Callable[[], Any]) -> Callable[[int], None]:
    """Once, when the moment has come; the call's own changes of the store don't count as moments."""
    calls = iter([call])

    def look(now: int) -> None:
        if now == moment and (first := next(calls, None)) is not None:
            first()

    return look


def _peak_of_plan(directory: str, size: int) -> int:
    prompts = (make_prompt(f"prompt {number}") for number in range(size))
    tracemalloc.start()
    try:
        extend_plan(directory, prompts, samples_per_prompt=1, shard_rows=500, commit_deadline_s=5)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
