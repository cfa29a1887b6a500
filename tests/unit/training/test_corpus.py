"""Which rows count, and what is refused before training starts."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from configs.errors import UserError
from configs.schema import ObjectiveConfig, TrainingConfig
from tests.unit.training.tiny import make_rows, write_rows
from training.batches import collate_packs
from training.corpus import Row, RowReader, load_corpus
from training.job import DataFile
from training.parallel import World

WORLD = World(0, 1, torch.device("cpu"))
CONFIG = TrainingConfig(sequence_length=48, evaluation_fraction=0.0)


def test_load_corpus_changed_file_is_refused_with_both_digests(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "a.parquet", make_rows(10))
    wrong = replace(file, sha256="0" * 64)
    with pytest.raises(UserError) as error:
        load_corpus((wrong,), CONFIG, WORLD)
    for part in (file.path, "0" * 64, str(file.sha256)):
        assert part in str(error.value)


def test_load_corpus_missing_file_is_named(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "a.parquet", make_rows(1))
    with pytest.raises(UserError, match=r"missing\.parquet"):
        load_corpus((replace(file, path=str(tmp_path / "missing.parquet")),), CONFIG, WORLD)


def test_load_corpus_takes_accepted_rows_only(tmp_path: Path) -> None:
    rows = make_rows(5) + make_rows(7, seed=1, status="rejected") + make_rows(2, seed=2, status="failed")
    corpus = load_corpus((write_rows(tmp_path / "a.parquet", rows),), CONFIG, WORLD)
    assert np.flatnonzero(corpus.is_training).tolist() == [0, 1, 2, 3, 4]


def test_load_corpus_leaves_out_rows_of_an_excluded_lineage_and_no_others(tmp_path: Path) -> None:
    """Two teachers in one file and row group; one of them may not be learnt from."""
    repos = ["good", "bad", None, "bad", "good"]
    table = pa.Table.from_pylist(make_rows(5)).append_column("teacher_repo", pa.array(repos))
    pq.write_table(table, tmp_path / "a.parquet")
    files = (DataFile(str(tmp_path / "a.parquet"), 5), write_rows(tmp_path / "b.parquet", make_rows(2)))
    for excluded, learnt in (
        (({"teacher_repo": "bad"},), [True, False, True, False, True]),
        (({"teacher_repo": None},), [True, True, False, True, True]),
        (({"teacher_repo": "bad"}, {"teacher_repo": None}), [True, False, False, False, True]),
        (({"teacher_repo": "bad", "terms_id": None},), [True] * 5),
    ):
        corpus = load_corpus(files, CONFIG, WORLD, excluded)
        assert (corpus.is_training | corpus.is_evaluation).tolist() == [*learnt, True, True]
    with pytest.raises(UserError, match="no row to train on"):
        load_corpus(files[:1], CONFIG, WORLD, tuple({"teacher_repo": each} for each in ("good", "bad", None)))


def test_load_corpus_rows_without_tokens_do_not_count(tmp_path: Path) -> None:
    rows = make_rows(3) + make_rows(1, seed=1, completion_token_ids=[]) + make_rows(1, completion_token_ids=None)
    corpus = load_corpus((write_rows(tmp_path / "a.parquet", rows),), CONFIG, WORLD)
    assert int(corpus.is_training.sum()) == 3


def test_load_corpus_no_usable_row_is_refused(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "a.parquet", make_rows(4, status="rejected"))
    with pytest.raises(UserError, match="no row to train on: of 4 rows 0 are accepted"):
        load_corpus((file,), CONFIG, WORLD)


def test_load_corpus_overlong_rows_are_dropped_and_counted_or_refused(tmp_path: Path) -> None:
    rows = make_rows(6) + make_rows(2, seed=1, completion_token_ids=[3] * 60)
    file = write_rows(tmp_path / "a.parquet", rows)
    corpus = load_corpus((file,), CONFIG, WORLD)
    assert (corpus.overlong_dropped, int(corpus.is_training.sum())) == (2, 6)
    with pytest.raises(UserError, match=r"2 rows are longer than training\.sequence_length \(48"):
        load_corpus((file,), CONFIG.model_copy(update={"overlong": "refuse"}), WORLD)


def test_load_corpus_samples_of_one_prompt_are_on_one_side(tmp_path: Path) -> None:
    rows = [row | {"prompt_id": f"{i // 4:032x}"} for i, row in enumerate(make_rows(400))]
    config = CONFIG.model_copy(update={"evaluation_fraction": 0.3})
    corpus = load_corpus((write_rows(tmp_path / "a.parquet", rows),), config, WORLD)
    sides = corpus.is_evaluation.reshape(100, 4)
    assert (sides.all(axis=1) | ~sides.any(axis=1)).all()
    assert 15 <= sides[:, 0].sum() <= 45


def test_row_reader_across_row_groups_returns_the_tokens_written(tmp_path: Path) -> None:
    rows = make_rows(50)
    corpus = load_corpus((write_rows(tmp_path / "a.parquet", rows, 7),), CONFIG, WORLD)
    assert len(corpus.groups) == 8
    reader = RowReader(corpus)
    found = reader.fetch(np.array([49, 3, 21, 6])) | reader.fetch(np.array([7, 3]))
    assert {number: (row.prompt.tolist(), row.completion.tolist()) for number, row in found.items()} == {
        n: (rows[n]["prompt_token_ids"], rows[n]["completion_token_ids"]) for n in (3, 6, 7, 21, 49)
    }


def test_collate_packs_puts_the_loss_on_completions_and_restarts_positions() -> None:
    def row(prompt: list[int], completion: list[int]) -> Row:
        return Row(np.array(prompt, np.int32), np.array(completion, np.int32))

    batch = collate_packs([[row([5, 6], [7, 8]), row([], [9, 10])], []], sequence_length=7, pad_id=0)
    assert batch.input_ids_BT.tolist() == [[5, 6, 7, 8, 9, 10, 0], [0] * 7]
    assert batch.position_ids_BT.tolist() == [[0, 1, 2, 3, 0, 1, 0], [0, 1, 2, 3, 4, 5, 6]]
    # 6 predicts 7, 7 predicts 8; nothing precedes 9, and 9 predicts 10.
    assert batch.loss_index_N.tolist() == [1, 2, 4]
    assert batch.targets_N.tolist() == [7, 8, 10]


def test_row_reader_and_collate_bring_each_loss_token_its_candidates(tmp_path: Path) -> None:
    first = {
        "completion_token_ids": [7, 2],
        "completion_topk_ids": [7, 8, 2, 3],
        "completion_topk_logprobs": [-1.0] * 4,
    }
    without = {"completion_token_ids": [9], "completion_topk_ids": None, "completion_topk_logprobs": None}
    no_prompt = {
        "prompt_token_ids": [],
        "completion_token_ids": [4, 5],
        "completion_topk_ids": [4, 5],
        "completion_topk_logprobs": [-2.0, -3.0],
    }
    rows = [row | part for row, part in zip(make_rows(3), (first, without, no_prompt), strict=True)]
    path = tmp_path / "topk.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    config = CONFIG.model_copy(update={"objective": ObjectiveConfig(kl_weight=0.5)})
    corpus = load_corpus((DataFile(str(path), 3),), config, WORLD)
    found = RowReader(corpus, with_topk=True).fetch(np.arange(3))
    batch = collate_packs([[found[0], found[1]], [found[2]]], 48, 0, with_topk=True)
    assert batch.targets_N.tolist() == [7, 2, 9, 5]
    assert batch.topk_ids_NK is not None
    assert batch.topk_logprobs_NK is not None
    assert batch.topk_ids_NK.tolist() == [[7, 8], [2, 3], [0, 0], [5, 0]]
    assert batch.topk_logprobs_NK.tolist() == [[-1, -1], [-1, -1], [-np.inf, -np.inf], [-3, -np.inf]]


def test_load_corpus_divergence_without_the_teachers_logprobs_is_refused(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"objective": ObjectiveConfig(kl_weight=0.5)})
    with pytest.raises(UserError, match=r"kl_weight needs the teacher's log-probabilities, and .*a\.parquet"):
        load_corpus((write_rows(tmp_path / "a.parquet", make_rows(3)),), config, WORLD)


@pytest.mark.parametrize(
    ("ids", "logprobs", "told"),
    [
        ([7, 8, 2], [-1.0] * 3, "has 3 ids and 3 log-probabilities of the teacher's candidates for its 2 tokens"),
        ([7, 2], [-1.0] * 4, "has 2 ids and 4 log-probabilities"),
        (None, [-1.0] * 2, "has 0 ids and 2 log-probabilities"),
        ([7, 2], [-1.0] * 2, None),
        (None, None, None),
    ],
)
@pytest.mark.parametrize("status", ["accepted", "rejected"])
def test_load_corpus_row_with_a_wrong_number_of_candidates_is_named(
    tmp_path: Path, ids: list[int] | None, logprobs: list[float] | None, told: str | None, status: str
) -> None:
    right = {
        "completion_token_ids": [7, 2],
        "completion_topk_ids": [7, 8, 2, 3],
        "completion_topk_logprobs": [-1.0] * 4,
    }
    rows = [row | right for row in make_rows(5)]
    rows[3] |= {"status": status, "completion_topk_ids": ids, "completion_topk_logprobs": logprobs}
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "topk.parquet")
    files = (DataFile(str(tmp_path / "topk.parquet"), 5),)
    config = CONFIG.model_copy(update={"objective": ObjectiveConfig(kl_weight=0.5)})
    load_corpus(files, CONFIG, WORLD)
    if told is None or status == "rejected":
        load_corpus(files, config, WORLD)
        return
    with pytest.raises(UserError) as error:
        load_corpus(files, config, WORLD)
    for part in (rows[3]["prompt_id"], "topk.parquet", told):
        assert part in str(error.value)
