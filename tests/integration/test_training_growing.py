"""A student that learns while its table grows: the same losses whenever the commits come, resumed, and on two ranks."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.integration.ranks import PREEMPTED, curve_of, run_ranks
from tests.unit.training.growing import GrowingTable
from tests.unit.training.tiny import make_job, make_rows
from training.job import JobDevice, StepMetrics, TrainJob
from training.loop import train
from training.output import read_learnt_files
from training.parallel import joined_world
from training.preemption import Preempted

pytestmark = pytest.mark.integration

SHARDS = {number: make_rows(60, number) for number in (2, 0, 3, 1)}  # in the order of their commits


def make_growing_job(root: Path, table: GrowingTable, num_files: int = 4) -> TrainJob:
    settings = {"packing_window_rows": 40, "keep_checkpoints": 9, "max_steps": 14}
    return make_job(root, 2, files=(), commits=table.commits(num_files), **settings)


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> TrainJob:
    """A job over a table that had all its rows when it began, done in one process."""
    root = tmp_path_factory.mktemp("complete")
    table = GrowingTable(root / "completions")
    for number, rows in SHARDS.items():
        table.commit({number: rows})
    job = make_growing_job(root, table)
    with joined_world(JobDevice.CPU) as world:
        train(job, lambda _: None, world)
    return job


def test_train_that_waits_for_each_commit_has_the_losses_of_a_complete_table(
    tmp_path: Path, complete: TrainJob
) -> None:
    table, left = GrowingTable(tmp_path / "completions"), list(SHARDS.items())
    table.commit(dict([left.pop(0)]))
    job = make_growing_job(tmp_path, table)

    def commit_one(_: StepMetrics) -> None:
        if left:
            table.commit(dict([left.pop(0)]))

    with joined_world(JobDevice.CPU) as world:
        result = train(job, commit_one, world)
    assert curve_of(job) == curve_of(complete)
    lines = Path(job.output_dir, "metrics.jsonl").read_text().splitlines()
    assert {json.loads(line)["epoch"] for line in lines} == {0, 1}
    assert result.rows + result.evaluation_rows == sum(map(len, SHARDS.values()))
    assert [Path(file.path).name[:12] for file in read_learnt_files(job)] == [f"shard-{n:06d}" for n in SHARDS]


def test_train_two_ranks_that_are_stopped_and_resumed_by_one_keep_the_losses(
    tmp_path: Path, complete: TrainJob
) -> None:
    job = replace(complete, output_dir=str(tmp_path / "out"))
    assert run_ranks(job, 2, signal_at=4) == [PREEMPTED, PREEMPTED]
    assert len(curve_of(job)) < 14
    with joined_world(JobDevice.CPU) as world:
        train(job, lambda _: None, world)
    assert [step for step, *_ in curve_of(job)] == list(range(1, 15))
    for mine, theirs in zip(curve_of(job), curve_of(complete), strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)


def test_train_told_to_stop_while_it_waits_saves_what_it_has_and_goes_on(tmp_path: Path, complete: TrainJob) -> None:
    table, left = GrowingTable(tmp_path / "completions"), list(SHARDS.items())
    table.commit(dict([left.pop(0)]))
    job, asked = make_growing_job(tmp_path, table), 0

    def is_noticed() -> bool:  # asked at each step, and while there is nothing to learn: the second shard never comes
        nonlocal asked
        asked += 1
        return asked > 6

    with joined_world(JobDevice.CPU) as world:
        with pytest.raises(Preempted):
            train(job, lambda _: None, world, is_noticed)
        num_taken = len(curve_of(job))
        assert 0 < num_taken < 6
        for number, rows in left:
            table.commit({number: rows})
        train(job, lambda _: None, world)
    assert curve_of(job) == curve_of(complete)
