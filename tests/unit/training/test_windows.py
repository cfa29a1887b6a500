"""The first epoch over a growing table: the same steps whenever its commits are seen, and every row once."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from configs.errors import DeadlineExceeded, UserError
from configs.schema import TrainingConfig
from tests.unit.training.growing import GrowingTable
from tests.unit.training.tiny import make_job, make_rows
from training.batches import iterate_steps
from training.commits import CommitLog
from training.corpus import Corpus, RowGroup, load_corpus
from training.job import Commits, TrainJob
from training.parallel import World
from training.plan import plan_epoch
from training.rows import GrowingRows, Part
from training.windows import WindowPlanner

pytestmark = pytest.mark.unit

WORLD = World(0, 1, torch.device("cpu"))
NUM_ROWS, GROUP_ROWS = 1000, 50
IN_SEQUENCES: dict[str, Any] = {"batch_sequences": 7}
IN_TOKENS: dict[str, Any] = {"batch_sequences": None, "batch_tokens": 200}


@pytest.fixture(params=[IN_SEQUENCES, IN_TOKENS], ids=["sequences", "tokens"])
def config(request: pytest.FixtureRequest) -> TrainingConfig:
    return TrainingConfig(sequence_length=64, packing_window_rows=150, **request.param)


def grow(num_rows: int) -> Corpus:
    """The first rows of one and the same corpus."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 40, NUM_ROWS).astype(np.int32)[:num_rows]
    is_training = (rng.random(NUM_ROWS) < 0.8)[:num_rows]
    groups = tuple(RowGroup("unread", i, GROUP_ROWS, i * GROUP_ROWS) for i in range(num_rows // GROUP_ROWS))
    return Corpus(groups, lengths, lengths - 2, is_training, ~is_training, 0)


def steps_of(config: TrainingConfig, seen: list[int]) -> list[list[list[int]]]:
    """Rows of each pack of each step when the corpus is looked at with so many rows, one time after another."""
    planner, steps = WindowPlanner(config), []
    for num_rows in seen:
        for window in planner.extend(grow(num_rows), is_complete=num_rows == NUM_ROWS):
            plan = window.plan
            for step in range(plan.num_steps):
                first, end = plan.step_starts[step : step + 2]
                steps.append([plan.pack(pack).tolist() for pack in range(first, end)])
    return steps


SEEN = [[NUM_ROWS], list(range(0, NUM_ROWS + 1, GROUP_ROWS)), [400, 450, NUM_ROWS], [950, 950, NUM_ROWS]]


@pytest.mark.parametrize("seen", SEEN[1:], ids=["commit by commit", "late", "all but one"])
def test_window_plan_is_the_same_whenever_commits_are_seen(config: TrainingConfig, seen: list[int]) -> None:
    assert steps_of(config, seen) == steps_of(config, SEEN[0])


def test_window_plan_holds_every_training_row_once_and_keeps_windows_in_order(config: TrainingConfig) -> None:
    steps = steps_of(config, SEEN[1])
    rows = [row for step in steps for pack in step for row in pack]
    training = np.flatnonzero(grow(NUM_ROWS).is_training)
    assert sorted(rows) == training.tolist()
    window_of = {row: place // config.packing_window_rows for place, row in enumerate(training.tolist())}
    for pack in (pack for step in steps for pack in step):  # what was not full goes with the next window, no further
        assert max(map(window_of.__getitem__, pack)) - min(map(window_of.__getitem__, pack)) <= 1


def test_window_plan_steps_hold_the_batch_until_the_last_window(config: TrainingConfig) -> None:
    lengths = grow(NUM_ROWS).loss_lengths
    steps = steps_of(config, SEEN[1])
    if config.batch_sequences is not None:
        assert {len(step) for step in steps[:-3]} == {config.batch_sequences}
        return
    assert config.batch_tokens is not None
    for step in steps[:-3]:
        packs = [int(lengths[pack].sum()) for pack in step]
        assert abs(sum(packs) - config.batch_tokens) <= max(packs)


def test_window_plan_other_seeds_shuffle_otherwise(config: TrainingConfig) -> None:
    other = config.model_copy(update={"seed": 1})
    assert steps_of(other, SEEN[0]) != steps_of(config, SEEN[0])


@pytest.fixture
def job(tmp_path: Path) -> TrainJob:
    table = GrowingTable(tmp_path / "completions")
    shards = [make_rows(60, seed) for seed in range(5)]
    table.commit({3: shards[3]})
    table.commit({1: shards[1], 0: shards[0]})
    table.commit({4: shards[4]})
    table.commit({2: shards[2]})
    return make_job(tmp_path, 2, files=(), commits=table.commits(5), packing_window_rows=100)


def open_rows(job: TrainJob, world: World = WORLD) -> GrowingRows:
    assert job.commits is not None
    return GrowingRows(job.commits, job, world, lambda _: None)


def test_commit_log_gives_files_in_the_order_of_the_commits_with_their_digests(job: TrainJob) -> None:
    assert job.commits is not None
    log = CommitLog(job.commits)
    files = log.read_new()
    assert [each.shard for each in files] == [3, 1, 0, 4, 2]
    assert log.read_new() == []
    load_corpus(tuple(each.file for each in files), job.training, WORLD)  # checks the digests


def test_commit_log_of_another_table_is_refused(job: TrainJob, tmp_path: Path) -> None:
    other = GrowingTable(tmp_path / "other").commits(5)
    assert job.commits is not None
    with pytest.raises(UserError, match="another table"):
        CommitLog(Commits(job.commits.table, other.table_id, 5)).read_new()


def test_growing_rows_changed_file_is_refused_by_the_digest_of_its_commit(job: TrainJob) -> None:
    assert job.commits is not None
    path = Path(CommitLog(job.commits).read_new()[0].file.path)
    data = bytearray(path.read_bytes())
    data[20] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"has changed: sha256"):
        next(open_rows(job).parts(0))


def test_growing_rows_each_rank_has_its_share_of_one_rank_s_steps(job: TrainJob) -> None:
    def tokens(world: World) -> list[float]:
        return [
            float(sum(micro.targets_N.sum() for micro in step))
            for part in open_rows(job).parts(0)
            if part is not None
            for step in iterate_steps(part.corpus, part.plan, job.training, world, 0)
        ]

    alone = tokens(WORLD)
    halves = [tokens(World(rank, 2, torch.device("cpu"))) for rank in range(2)]
    assert np.add(*halves).tolist() == alone


def test_growing_rows_further_epochs_are_those_of_the_sealed_table(job: TrainJob) -> None:
    rows = open_rows(job)
    assert rows_of(rows.parts(0)) == rows_of(open_rows(job).parts(0))
    [part] = [part for part in rows.parts(1) if part is not None]
    by_shard = tuple(sorted(rows.files, key=lambda file: Path(file.path).name))
    sealed = load_corpus(by_shard, job.training, WORLD)
    assert part.plan.rows.tolist() == plan_epoch(sealed, job.training, 1).rows.tolist()
    assert [group.path for group in part.corpus.groups] == [group.path for group in sealed.groups]


def rows_of(parts: Iterator[Part | None]) -> list[list[int]]:
    return [part.plan.rows.tolist() for part in parts if part is not None]


def test_growing_rows_evaluate_on_what_was_held_back_up_to_the_window(job: TrainJob) -> None:
    held_back = [part.evaluation for part in open_rows(job).parts(0) if part is not None]
    counts = [0 if plan is None else len(plan.rows) for plan in held_back]
    assert counts == sorted(counts)
    assert 0 < counts[0] < counts[-1]


def test_growing_rows_missing_shard_ends_with_what_was_waited_for(job: TrainJob, tmp_path: Path) -> None:
    assert job.commits is not None
    more = Commits(job.commits.table, job.commits.table_id, 6, deadline_s=0.1)
    rows = GrowingRows(more, job, WORLD, lambda _: None)
    with pytest.raises(DeadlineExceeded, match=r"all 5 of 6 shards .*deadlines.no_progress"):
        list(rows.parts(0))


def test_growing_rows_shards_planned_later_are_another_jobs(job: TrainJob) -> None:
    assert job.commits is not None
    fewer = Commits(job.commits.table, job.commits.table_id, 3)
    rows = GrowingRows(fewer, job, WORLD, lambda _: None)
    rows_of(rows.parts(0))
    assert [Path(file.path).name[:12] for file in rows.files] == ["shard-000003", "shard-000001", "shard-000000"]
