"""What must hold of a run whatever happens, as functions that raise; the mutation suite turns each of them red."""

import tracemalloc
from itertools import count
from pathlib import Path
from typing import Any

import services.table
from services.client import ShardClient
from services.plan import extend_plan
from services.prompts import make_prompt
from tests.chaos.clients import REFUSED
from tests.chaos.driver import DriverJob, client_spec, make_prompts, plan, tasks
from tests.chaos.harness import assert_exactly_once, read_completions
from tests.chaos.local import Crash, Store, local_job, make_shards, seal_run, to_block

BYTES_A_ROW = 40.0  # an id in a Python set takes more than a hundred


def check_answers(job: DriverJob) -> None:
    """Sealed, nothing pending, nothing failed, and every row with its answer."""
    ledger = seal_run(job).ledger
    assert (ledger.planned, ledger.pending, ledger.failed) == (len(job.prompts) * job.samples, 0, 0)
    assert_exactly_once(job)


def check_crash_at_every_change(directory: Path | str, store: Store) -> int:
    """Die before every change of the store in turn and resume each time; returns how many places there were."""
    for crash_before in count():
        job = local_job(f"{directory}/crash-{crash_before}")
        store.changes, store.crash_before = 0, crash_before
        try:
            make_shards(job)
        except Crash:
            make_shards(job)
        else:
            store.crash_before = None
            return crash_before
        check_answers(job)
    raise AssertionError("unreachable")


def check_race(directory: Path | str, store: Store) -> None:
    """While a client is about to upload a shard, or to commit it, another makes and commits the same."""
    for offset in (1, 2):
        job = local_job(f"{directory}/{offset}", num_prompts=8)
        plan(job)
        block = to_block(tasks(job))
        slow, quick = ShardClient(client_spec(job)), ShardClient(client_spec(job))
        summaries, moment = [], store.changes + offset
        store.before_change[:] = [lambda now: summaries.append(quick(block)) if now == moment else None]  # noqa: B023
        summaries.append(slow(block))
        store.before_change.clear()
        check_answers(job)
        assert [each["accepted"] + each["rejected"] for summary in summaries for each in summary.to_pylist()] == [8, 8]


def check_retried_task(directory: Path | str, store: Store) -> None:
    """A task whose reply was lost is run again by Ray: it finds its shard committed."""
    job = local_job(directory, num_prompts=8)
    plan(job)
    client, block = ShardClient(client_spec(job)), to_block(tasks(job))
    assert client(block).to_pylist()[0]["accepted"] == client(block).to_pylist()[0]["accepted"]
    check_answers(job)


def check_lost_acknowledgement(directory: Path | str, store: Store) -> None:
    """A commit that is applied, but whose answer is an error, is found in the log and not done again."""
    job = local_job(directory, num_prompts=8)
    plan(job)
    real, answers = services.table._transact, iter([OSError("the connection was reset")])

    def lose_answer(*arguments: Any) -> None:
        real(*arguments)
        if (error := next(answers, None)) is not None:
            raise error

    vars(services.table).update(_transact=lose_answer)
    try:
        [summary] = make_shards(job)
    finally:
        vars(services.table).update(_transact=real)
    check_answers(job)
    assert summary["completion_tokens"] > 0


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


def _peak_of_plan(directory: str, size: int) -> int:
    prompts = (make_prompt(f"prompt {number}") for number in range(size))
    tracemalloc.start()
    try:
        extend_plan(directory, prompts, samples_per_prompt=1, shard_rows=500, commit_deadline_s=5)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
