"""Rows that would teach something else than their completion are shown before training starts."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import PreTrainedTokenizerFast

from configs.errors import UserError
from configs.schema import ObjectiveConfig
from tests.unit.training.tiny import make_job, make_rows, write_rows
from training.job import DataFile, Transfer
from training.row_check import check_rows, find_problem
from training.tokenise import tokenise_rows
from training.tokenizer import build_character_tokenizer

pytestmark = pytest.mark.unit

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789+=|<>/\n "
PLAIN = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<eos>{% endfor %}"
TEMPLATE = PLAIN + "{% if add_generation_prompt %}<|assistant|>{% endif %}"
# As templates of reasoning models do: the answer begins inside the thinking, and past thinking is dropped.
THINKING = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content.split('</think>')[-1] }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
)
REFUSING = TEMPLATE + "{% if messages[-1].role == 'assistant' %}{{ raise_exception('a user must be last') }}{% endif %}"
CHANNELS = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}final{% endif %}{{ m.content }}<eos>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tokenizer_of(template: str = TEMPLATE) -> PreTrainedTokenizerFast:
    return build_character_tokenizer(LETTERS, template)


def row_of(completion: str, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Return a row as a teacher with this tokenizer and template writes it, in both forms."""
    row = {
        "prompt_id": "0" * 32,
        "status": "accepted",
        "prompt": json.dumps([{"role": "user", "content": "what is 3+4"}]),
        "completion": completion,
        "finish_reason": "stop",
    }
    [ids] = tokenise_rows([row], tokenizer, {}).to_pylist()
    return row | ids


def find(row: dict[str, Any], tokenizer: PreTrainedTokenizerFast, transfer: Transfer) -> str | None:
    return find_problem(row, tokenizer, {}, transfer)


@pytest.mark.parametrize("transfer", Transfer)
@pytest.mark.parametrize(
    ("template", "completion"),
    [
        (TEMPLATE, "it is 7"),
        (TEMPLATE, "<think>\n3+4</think>\n7"),
        (THINKING, "3+4</think>\n7"),
        (THINKING, "</think>7"),
    ],
)
def test_find_problem_row_of_its_own_template_has_none(transfer: Transfer, template: str, completion: str) -> None:
    tokenizer = tokenizer_of(template)
    assert find(row_of(completion, tokenizer), tokenizer, transfer) is None


@pytest.mark.parametrize(
    ("completion", "changed", "message"),
    [
        ("it is 7", {"completion_token_ids": [999, 2]}, "has the token 999 and the student's tokenizer has 47"),
        ("it is 7", {"prompt_token_ids": []}, "no prompt tokens, so its loss would be on the whole row"),
        ("it is 7", {"completion": "it is 8"}, "'it is 8' becomes tokens that read 'it is 7'"),
        ("it is 7", {"completion_token_ids": [11, 22]}, "becomes tokens that read"),
        ("3+4</think>7", {}, "thinking is opened 0 times and closed 1 times"),
        ("<think>3+4", {}, "thinking is opened 1 times and closed 0 times"),
    ],
)
def test_find_problem_broken_row_is_described(completion: str, changed: dict[str, Any], message: str) -> None:
    tokenizer = tokenizer_of()
    problem = find(row_of(completion, tokenizer) | changed, tokenizer, Transfer.TOKEN_IDS)
    assert problem is not None
    assert message in problem


def test_find_problem_completion_without_end_of_turn_is_described_unless_it_was_cut_off() -> None:
    tokenizer = tokenizer_of()
    row = row_of("it is 7", tokenizer)
    row["completion_token_ids"].pop()
    problem = find(row, tokenizer, Transfer.TOKEN_IDS)
    assert problem is not None
    assert "ends with 'it is 7' and no end of turn" in problem
    assert find({**row, "finish_reason": "length"}, tokenizer, Transfer.TOKEN_IDS) is None


def test_find_problem_teacher_with_another_template_is_described_for_token_ids() -> None:
    row = row_of("3+4</think>\n7", tokenizer_of(THINKING))
    problem = find(row, tokenizer_of(), Transfer.TOKEN_IDS)
    assert problem is not None
    assert "student's chat template begins an answer with '<|assistant|>'" in problem


def test_find_problem_template_that_frames_answers_is_described_for_text() -> None:
    tokenizer = tokenizer_of(CHANNELS)
    problem = find(row_of("it is 7", tokenizer), tokenizer, Transfer.TEXT)
    assert problem is not None
    assert "<|assistant|>finalit is 7" in problem


def test_check_rows_template_that_refuses_an_answer_is_one_sentence_with_row_and_reason(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(REFUSING)
    rows = [row_of("it is 7", tokenizer)]
    job = make_job(tmp_path, files=(write_rows(tmp_path / "rows.parquet", rows),), transfer=Transfer.TEXT)
    with pytest.raises(UserError) as error:
        check_rows(job, tokenizer)
    for part in (rows[0]["prompt_id"], "refuses this prompt with its answer 'it is 7' (a user must be last); leave"):
        assert part in str(error.value)


def test_find_problem_text_that_the_tokenizer_loses_is_described() -> None:
    tokenizer = tokenizer_of()
    problem = find(row_of("it is Ж", tokenizer), tokenizer, Transfer.TEXT)
    assert problem is not None
    assert "'it is Ж' becomes tokens that read 'it is '" in problem


@pytest.mark.parametrize("transfer", Transfer)
def test_check_rows_names_the_prompt_the_file_and_the_key(tmp_path: Path, transfer: Transfer) -> None:
    rows = make_rows(20)
    rows[7] |= {"completion": "1é2", "completion_token_ids": [5, 6, 2]}
    job = make_job(tmp_path, files=(write_rows(tmp_path / "rows.parquet", rows),), transfer=transfer)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(job.tokenizer)
    with pytest.raises(UserError) as error:
        check_rows(job, tokenizer)
    for part in (rows[7]["prompt_id"], "rows.parquet", "'1é2' becomes tokens that read", "training.check_rows=0"):
        assert part in str(error.value)


@pytest.mark.parametrize("num_answers", [0, 1])
def test_check_rows_empty_answers_are_refused_where_there_is_nothing_else(tmp_path: Path, num_answers: int) -> None:
    empty = make_rows(5, completion="", completion_token_ids=[2])
    file = write_rows(tmp_path / "rows.parquet", empty + make_rows(num_answers, seed=1))
    job = make_job(tmp_path, num_rows=2, files=(file,))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(job.tokenizer)
    if num_answers:
        check_rows(job, tokenizer)
        return
    with pytest.raises(UserError, match="loss of all 5 rows looked at is on special tokens alone"):
        check_rows(job, tokenizer)


@pytest.mark.parametrize("check", [0, 7])
def test_check_rows_looks_at_as_many_rows_as_it_is_told(tmp_path: Path, check: int) -> None:
    rows = make_rows(20)
    rows[7]["completion_token_ids"] = [500]
    job = make_job(tmp_path, files=(write_rows(tmp_path / "rows.parquet", rows),), check_rows=check)
    check_rows(job, PreTrainedTokenizerFast.from_pretrained(job.tokenizer))


def test_check_rows_divergence_over_text_is_refused(tmp_path: Path) -> None:
    job = make_job(tmp_path, num_rows=4, transfer=Transfer.TEXT, objective=ObjectiveConfig(kl_weight=0.5))
    with pytest.raises(UserError, match="token by token, which needs equal tokenizers"):
        check_rows(job, PreTrainedTokenizerFast.from_pretrained(job.tokenizer))


def test_check_rows_divergence_with_logprobs_of_some_tokens_alone_is_refused(tmp_path: Path) -> None:
    rows = [{**row, "completion_topk_ids": [3], "completion_topk_logprobs": [-0.5]} for row in make_rows(4)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    files = (DataFile(str(tmp_path / "rows.parquet"), 4),)
    job = make_job(tmp_path, num_rows=2, files=files, objective=ObjectiveConfig(kl_weight=0.5))
    with pytest.raises(UserError, match="has 1 ids and 1 log-probabilities"):
        check_rows(job, PreTrainedTokenizerFast.from_pretrained(job.tokenizer))
