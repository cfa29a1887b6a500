"""The order of rows is a function of (seed, epoch, lengths), whatever the number of workers."""

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.schema import TrainingConfig
from tests.unit.training.tiny import make_job, make_rows, write_rows
from training.batches import iterate_steps
from training.corpus import Corpus, RowGroup, load_corpus
from training.parallel import World
from training.plan import plan_epoch, plan_evaluation


def world(rank: int = 0, size: int = 1) -> World:
    return World(rank, size, torch.device("cpu"))


@pytest.fixture
def config() -> TrainingConfig:
    return TrainingConfig(
        sequence_length=48, batch_sequences=7, micro_batch_sequences=2, packing_window_rows=64, evaluation_fraction=0.1
    )


@pytest.fixture
def corpus(tmp_path: Path, config: TrainingConfig) -> Corpus:
    rows = make_rows(400)
    files = tuple(write_rows(tmp_path / f"{i}.parquet", rows[i * 100 : i * 100 + 100], 30) for i in range(4))
    return load_corpus(files, config, world())


def test_plan_epoch_holds_every_training_row_once(corpus: Corpus, config: TrainingConfig) -> None:
    plan = plan_epoch(corpus, config, 0)
    assert sorted(plan.rows) == np.flatnonzero(corpus.is_training).tolist()
    assert plan.pack_starts[-1] == len(plan.rows)
    assert plan.step_tokens.sum() == corpus.lengths[corpus.is_training].sum()
    assert plan.step_loss_tokens.sum() == corpus.loss_lengths[corpus.is_training].sum()


def test_plan_epoch_steps_differ_by_at_most_one_pack_and_keep_the_batch(corpus: Corpus, config: TrainingConfig) -> None:
    sizes = np.diff(plan_epoch(corpus, config, 0).step_starts)
    assert sizes.max() <= config.batch_sequences
    assert sizes.max() - sizes.min() <= 1


def test_plan_epoch_batch_tokens_steps_bear_about_as_many_loss_tokens(corpus: Corpus, config: TrainingConfig) -> None:
    in_tokens = config.model_copy(update={"batch_sequences": None, "batch_tokens": 150})
    plan = plan_epoch(corpus, in_tokens, 0)
    assert plan.rows.tolist() == plan_epoch(corpus, config, 0).rows.tolist()
    # A boundary is at most half a pack of 48 tokens away from its share.
    assert np.abs(plan.step_loss_tokens - plan.step_loss_tokens.mean()).max() <= 48
    assert plan.num_steps == round(plan.step_loss_tokens.sum() / 150)


def test_plan_epoch_batch_tokens_below_one_pack_makes_a_step_of_each_pack(
    corpus: Corpus, config: TrainingConfig
) -> None:
    plan = plan_epoch(corpus, config.model_copy(update={"batch_sequences": None, "batch_tokens": 1}), 0)
    assert np.diff(plan.step_starts).tolist() == [1] * (len(plan.pack_starts) - 1)


def make_corpus(lengths: np.ndarray, group_rows: int) -> Corpus:
    groups = [RowGroup("unread", i, group_rows, i * group_rows) for i in range(len(lengths) // group_rows)]
    every = np.ones(len(lengths), bool)
    return Corpus(tuple(groups), lengths.astype(np.int32), lengths.astype(np.int32), every, ~every, 0)


@pytest.mark.parametrize("kind", ["long-tailed", "alike"])
def test_plan_epoch_windows_of_4096_rows_are_997_permille_full_over_all(kind: str) -> None:
    rng, num_rows = np.random.default_rng(0), 16 * 4096
    tailed = rng.lognormal(np.log(1800), 0.8, num_rows).clip(16, 4096)
    corpus = make_corpus(tailed if kind == "long-tailed" else rng.integers(37, 42, num_rows), 1024)
    plan = plan_epoch(corpus, TrainingConfig(sequence_length=4096), 0)
    assert sorted(plan.rows) == list(range(num_rows))
    assert plan.fill >= 0.997


def test_plan_epoch_packs_hold_rows_of_their_window_and_the_one_before() -> None:
    corpus = make_corpus(np.random.default_rng(0).integers(300, 2000, 8 * 512), 512)
    plan = plan_epoch(corpus, TrainingConfig(sequence_length=4096, packing_window_rows=512), 0)
    bounds = plan.pack_starts[plan.window_starts]
    groups = [set((plan.rows[first:end] // 512).tolist()) for first, end in itertools.pairwise(bounds)]
    assert len(groups) == 8
    assert all(len(group) <= 2 for group in groups)


def test_plan_epoch_same_seed_and_epoch_repeats_and_others_differ(corpus: Corpus, config: TrainingConfig) -> None:
    first = plan_epoch(corpus, config, 0).rows.tolist()
    assert plan_epoch(corpus, config, 0).rows.tolist() == first
    assert plan_epoch(corpus, config, 1).rows.tolist() != first
    assert plan_epoch(corpus, config.model_copy(update={"seed": 1}), 0).rows.tolist() != first


def test_plan_evaluation_holds_exactly_the_held_back_rows(corpus: Corpus, config: TrainingConfig) -> None:
    plan = plan_evaluation(corpus, config)
    assert plan is not None
    assert sorted(plan.rows) == np.flatnonzero(corpus.is_evaluation).tolist()
    assert 0 < len(plan.rows) < 0.2 * len(corpus.lengths)


def tokens_of_steps(corpus: Corpus, config: TrainingConfig, size: int, first_step: int = 0) -> list[Counter[int]]:
    """Return what each step learns over all ranks: its target tokens with the position they are predicted from."""
    plan = plan_epoch(corpus, config, 0)
    ranks = [list(iterate_steps(corpus, plan, config, world(rank, size), 0, first_step)) for rank in range(size)]
    steps = []
    for parts in zip(*ranks, strict=True):
        assert len({len(part) for part in parts}) == 1, "ranks must take the same number of micro-batches"
        step: Counter[int] = Counter()
        for micro_batch in (m for part in parts for m in part):
            before = micro_batch.input_ids_BT.flatten()[micro_batch.loss_index_N]
            positions = micro_batch.position_ids_BT.flatten()[micro_batch.loss_index_N]
            step.update((positions * 10_000 + before * 100 + micro_batch.targets_N).tolist())
        steps.append(step)
    return steps


@pytest.mark.parametrize("size", [2, 3, 8])
def test_iterate_steps_any_number_of_workers_learns_the_same_each_step(
    corpus: Corpus, config: TrainingConfig, size: int
) -> None:
    alone = tokens_of_steps(corpus, config, 1)
    assert tokens_of_steps(corpus, config, size) == alone
    assert [step.total() for step in alone] == plan_epoch(corpus, config, 0).step_loss_tokens.tolist()


def test_iterate_steps_ranks_of_a_group_see_the_rows_of_its_one_worker(corpus: Corpus, config: TrainingConfig) -> None:
    plan = plan_epoch(corpus, config, 0)

    def inputs(rank_world: World) -> list[torch.Tensor]:
        steps = iterate_steps(corpus, plan, config, rank_world, 0)
        return [micro_batch.input_ids_BT for step in steps for micro_batch in step]

    groups = [inputs(world(group, 2)) for group in range(2)]
    for rank in range(4):
        of_rank = inputs(world(rank, 4).grouped(2))
        assert len(of_rank) == len(groups[rank // 2])
        assert all(map(torch.equal, of_rank, groups[rank // 2]))


def test_iterate_steps_from_a_later_step_continues_the_same_order(corpus: Corpus, config: TrainingConfig) -> None:
    assert tokens_of_steps(corpus, config, 2, first_step=3) == tokens_of_steps(corpus, config, 2)[3:]


def test_iterate_steps_unreadable_file_raises_in_the_caller(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    corpus = load_corpus(job.files, job.training, world())
    for file in job.files:
        Path(file.path).unlink()
    with pytest.raises(FileNotFoundError):
        next(iterate_steps(corpus, plan_epoch(corpus, job.training, 0), job.training, world(), 0))
