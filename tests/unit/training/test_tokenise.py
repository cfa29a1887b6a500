"""Text transfer: chats through the template, plain prompts as they are, completions with their end."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from configs.errors import UserError
from configs.schema import ObjectiveConfig
from tests.unit.training.tiny import make_job, make_rows, save_tokenizer, write_rows
from training.corpus import load_corpus
from training.job import DataFile, JobDevice, TrainJob, Transfer
from training.loop import train
from training.model import load_tokenizer
from training.parallel import World, joined_world
from training.tokenise import tokenise_files, write_reference_rows

WORLD = World(0, 1, torch.device("cpu"))


def tokenise(job: TrainJob) -> list[dict[str, Any]]:
    files = tokenise_files(job, load_tokenizer(job.tokenizer), WORLD)
    return [row for file in files for row in pq.read_table(file.path).to_pylist()]


def test_tokenise_files_chat_gives_the_ids_that_the_teacher_had(tmp_path: Path) -> None:
    job = make_job(tmp_path, num_rows=40, transfer=Transfer.TEXT)
    written = [row for file in job.files for row in pq.read_table(file.path).to_pylist()]
    columns = ("prompt_id", "status", "prompt_token_ids", "completion_token_ids")
    assert tokenise(job) == [{name: row[name] for name in columns} for row in written]


class Shared:
    """What two ranks, as threads, exchange."""

    def __init__(self) -> None:
        self.barrier = threading.Barrier(2, timeout=60)
        self.values: list[Any] = [None, None]


@dataclass(frozen=True)
class RankOfTwo(World):
    """A world of two ranks that are threads."""

    shared: Shared = field(default_factory=Shared)

    def gather(self, value: Any) -> list[Any]:
        self.shared.values[self.rank] = value
        self.shared.barrier.wait()
        values = list(self.shared.values)
        self.shared.barrier.wait()
        return values

    def broadcast(self, value: Any) -> Any:
        return self.gather(value)[0]


class CountingTokenizer:
    """A tokenizer that counts the texts it is given."""

    def __init__(self, path: str) -> None:
        self.tokenizer, self.num_texts = load_tokenizer(path), 0

    def __call__(self, texts: Any, **settings: Any) -> Any:
        self.num_texts += len(texts) if isinstance(texts, list) else 1
        return self.tokenizer(texts, **settings)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)


def test_tokenise_files_two_ranks_do_half_each_and_have_what_one_has(tmp_path: Path) -> None:
    alone = make_job(tmp_path / "alone", num_rows=40, transfer=Transfer.TEXT)
    job = replace(alone, output_dir=str(tmp_path / "shared"))
    shared, tokenizers = Shared(), [CountingTokenizer(job.tokenizer) for _ in range(2)]
    ranks = [RankOfTwo(rank, 2, torch.device("cpu"), shared=shared) for rank in range(2)]

    def tokenise_on(world: RankOfTwo) -> tuple[DataFile, ...]:
        return tokenise_files(job, tokenizers[world.rank], world)  # type: ignore[arg-type]

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(tokenise_on, ranks)
        assert first == second == next(iter(pool.map(tokenise_on, ranks)))  # found again
    assert [tokenizer.num_texts for tokenizer in tokenizers] == [40, 40]  # prompts and completions of 20 rows each
    expected = tokenise_files(alone, load_tokenizer(alone.tokenizer), WORLD)
    assert [file.sha256 for file in first] == [file.sha256 for file in expected]


def test_tokenise_files_mistake_of_one_rank_is_raised_on_both(tmp_path: Path) -> None:
    job = make_job(tmp_path, num_rows=10, transfer=Transfer.TEXT)
    job = replace(job, files=(job.files[0], replace(job.files[1], sha256="0" * 64)))
    shared, tokenizer = Shared(), load_tokenizer(job.tokenizer)
    ranks = [RankOfTwo(rank, 2, torch.device("cpu"), shared=shared) for rank in range(2)]
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(tokenise_files, job, tokenizer, rank) for rank in ranks]
    assert ["has changed" in str(one.exception()) for one in both] == [True, True]
    assert not Path(job.output_dir, "tokenised", "manifest.json").exists()


def test_tokenise_files_leaves_out_rows_that_were_not_accepted(tmp_path: Path) -> None:
    rows = make_rows(3) + make_rows(4, seed=1, status="rejected", completion=None)
    job = make_job(tmp_path, files=(write_rows(tmp_path / "mixed.parquet", rows),), transfer=Transfer.TEXT)
    assert len(tokenise(job)) == 3


def test_tokenise_files_leaves_out_rows_of_an_excluded_lineage(tmp_path: Path) -> None:
    rows = [{**row, "teacher_repo": repo} for row, repo in zip(make_rows(3), ("good", "bad", None), strict=True)]
    path = tmp_path / "two.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    excluded = ({"teacher_repo": "bad"},)
    job = make_job(tmp_path, files=(DataFile(str(path), 3),), transfer=Transfer.TEXT, excluded=excluded)
    assert [row["prompt_id"] for row in tokenise(job)] == [rows[0]["prompt_id"], rows[2]["prompt_id"]]


def test_tokenise_files_second_call_reads_what_the_first_wrote(tmp_path: Path) -> None:
    job = make_job(tmp_path, num_rows=10, transfer=Transfer.TEXT)
    first = tokenise(job)
    for file in job.files:
        Path(file.path).unlink()
    assert tokenise(job) == first


def test_tokenise_files_cut_off_completion_gets_no_end(tmp_path: Path) -> None:
    rows = [{**row, "finish_reason": reason} for row, reason in zip(make_rows(2), ("stop", "length"), strict=True)]
    path = tmp_path / "cut.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    job = make_job(tmp_path, files=(DataFile(str(path), 2),), transfer=Transfer.TEXT)
    assert [row["completion_token_ids"][-1] == 2 for row in tokenise(job)] == [True, False]


def test_tokenise_files_chat_without_template_is_refused(tmp_path: Path) -> None:
    tokenizer = save_tokenizer(tmp_path / "plain", chat_template=None)
    job = make_job(tmp_path, tokenizer=tokenizer, transfer=Transfer.TEXT)
    with pytest.raises(UserError, match="student's tokenizer has no chat template"):
        tokenise(job)
    assert not list(Path(job.output_dir, "tokenised").iterdir())


def test_tokenise_files_plain_prompt_needs_no_template(tmp_path: Path) -> None:
    rows = make_rows(2, prompt=json.dumps("12+3="))
    tokenizer = save_tokenizer(tmp_path / "plain", chat_template=None)
    file = write_rows(tmp_path / "plain.parquet", rows)
    job = make_job(tmp_path, files=(file,), tokenizer=tokenizer, transfer=Transfer.TEXT)
    # 0 is token 3, + is 13, = is 14.
    assert [row["prompt_token_ids"] for row in tokenise(job)] == [[4, 5, 13, 6, 14]] * 2


def test_tokenise_files_changed_input_is_refused(tmp_path: Path) -> None:
    job = make_job(tmp_path, transfer=Transfer.TEXT)
    write_rows(Path(job.files[0].path), make_rows(3))
    with pytest.raises(UserError, match=r"a\.parquet' has changed"):
        tokenise(job)


def test_train_text_job_has_the_losses_of_the_token_id_job(tmp_path: Path) -> None:
    losses = []
    for transfer in Transfer:
        job = make_job(tmp_path / transfer, num_rows=60, max_steps=3, transfer=transfer)
        with joined_world(JobDevice.CPU) as world:
            losses.append(train(job, lambda _: None, world).final_loss)
    assert losses[0] == losses[1]


def test_load_corpus_of_tokenised_files_checks_their_digests(tmp_path: Path) -> None:
    job = make_job(tmp_path, transfer=Transfer.TEXT)
    files = tokenise_files(job, load_tokenizer(job.tokenizer), WORLD)
    Path(files[0].path).write_bytes(b"no longer Parquet")
    with pytest.raises(UserError, match="has changed"):
        load_corpus(files, job.training, WORLD)


def reference_job(root: Path, share: float, transfer: Transfer, answer: str | None = "9") -> TrainJob:
    rows = [row | {"sample_index": sample} for row in make_rows(40) for sample in (0, 1)]
    columns = [{**row, "answer": answer} for row in rows]
    # A prompt whose completions were all rejected is learnt from its answer all the same.
    columns[0]["status"] = columns[1]["status"] = "rejected"
    root.mkdir()
    pq.write_table(pa.Table.from_pylist(columns), root / "rows.parquet")
    objective = ObjectiveConfig(ground_truth_share=share)
    files = (DataFile(str(root / "rows.parquet"), len(rows)),)
    return make_job(root, num_rows=2, files=files, transfer=transfer, objective=objective)


@pytest.mark.parametrize("transfer", Transfer)
def test_write_reference_rows_holds_the_answer_of_each_prompt_once(tmp_path: Path, transfer: Transfer) -> None:
    job = reference_job(tmp_path / "all", 1.0, transfer)
    [file] = write_reference_rows(job, load_tokenizer(job.tokenizer), WORLD)
    rows, sources = pq.read_table(file.path).to_pylist(), make_rows(40)
    assert [(row["prompt_id"], row["prompt_token_ids"]) for row in rows] == [
        (row["prompt_id"], row["prompt_token_ids"]) for row in sources
    ]
    assert {tuple(row["completion_token_ids"]) for row in rows} == {(12, 2)}
    assert all(row["status"] == "accepted" and row["completion_topk_ids"] is None for row in rows)


def test_write_reference_rows_share_takes_about_that_part_of_the_prompts(tmp_path: Path) -> None:
    job = reference_job(tmp_path / "half", 0.5, Transfer.TOKEN_IDS)
    [file] = write_reference_rows(job, load_tokenizer(job.tokenizer), WORLD)
    assert 10 <= file.num_rows <= 30


def test_write_reference_rows_without_any_answer_is_refused(tmp_path: Path) -> None:
    job = reference_job(tmp_path / "none", 1.0, Transfer.TOKEN_IDS, answer=None)
    with pytest.raises(UserError, match="no prompt has a reference answer"):
        write_reference_rows(job, load_tokenizer(job.tokenizer), WORLD)
