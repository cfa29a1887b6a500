"""Looks at real rows before the first step: a student learns from a wrong template or mask without any error.

`training.setup` calls it on rank 0. What is checked, on token ids as the student will see them: the completion survives
decoding, the loss is on the completion and ends with an end of turn, the prompt ends as the student's template has it
before an answer, and thinking that is opened is closed.
"""

import re
from collections.abc import Iterator
from typing import Any

import pyarrow.parquet as pq
from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from configs.errors import UserError
from configs.table import RowStatus
from training import storage
from training.corpus import check_file
from training.job import DataFile, TrainJob, Transfer
from training.quarantine import Exclusions, iterate_kept
from training.tokenise import as_messages, encode_prompt, render_prompt, tokenise_rows

_COLUMNS = (
    "prompt_id",
    "status",
    "prompt",
    "completion",
    "finish_reason",
    "prompt_token_ids",
    "completion_token_ids",
    "completion_topk_ids",
    "completion_topk_logprobs",
)
# Rows read at a time while looking for accepted ones.
_BATCH_ROWS = 256
_OPEN_THINKING = re.compile(r"<think>\s*$")
# What a template may put between the beginning of an answer and the answer itself.
_THINKING_FRAME = re.compile(r"\s*(<think>\s*(</think>)?\s*)?")


def check_rows(job: TrainJob, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check ``training.check_rows`` accepted rows, spread over the job's files.

    UserError shows the first row that would teach something else than its completion, and how to mend it.
    """
    has_kl = job.training.objective.kl_weight > 0
    if has_kl and job.transfer is Transfer.TEXT:
        raise UserError(
            "training.objective.kl_weight compares teacher and student token by token, which needs equal tokenizers "
            "(student.transfer=token_ids); set it to 0 or take a student with the teacher's tokenizer"
        )
    if not job.training.check_rows:
        return
    special, num_rows, num_empty = _special_ids(tokenizer), 0, 0
    for file, row in _sample_rows(job):
        if job.transfer is Transfer.TEXT:
            [ids] = tokenise_rows([row], tokenizer, job.template_kwargs).to_pylist()
            row = {**row, **ids}
        problem = find_problem(row, tokenizer, job.template_kwargs, job.transfer)
        if problem is None and has_kl:
            problem = _find_topk_problem(row)
        if problem is not None:
            raise UserError(
                f"the row of prompt {row['prompt_id']} in {file.path!r} would be learnt wrongly: {problem}; or set "
                "training.check_rows=0 to train on such rows all the same"
            )
        num_rows += 1
        num_empty += set(row["completion_token_ids"] or []) <= special
    # One empty answer is an answer; nothing else is a mistake.
    if num_rows and num_empty == num_rows:
        raise UserError(
            f"the loss of all {num_rows} rows looked at is on special tokens alone, so the student would learn to say "
            "nothing; look at the completions in the table, or set training.check_rows=0"
        )


def _sample_rows(job: TrainJob) -> Iterator[tuple[DataFile, dict[str, Any]]]:
    """Yield the first rows to be learnt of files that are evenly spread, about ``training.check_rows`` in all."""
    files, num_rows = job.files, job.training.check_rows
    num_files = min(len(files), num_rows)
    for i in range(num_files):
        file = files[i * len(files) // num_files]
        check_file(file)
        wanted = num_rows // num_files
        for row in _accepted_rows(file, job.excluded):
            yield file, row
            if not (wanted := wanted - 1):
                break


def _accepted_rows(file: DataFile, excluded: Exclusions) -> Iterator[dict[str, Any]]:
    fs, path = storage.open_filesystem(file.path)
    with fs.open(path, "rb") as handle:
        parquet = pq.ParquetFile(handle)
        columns = [name for name in _COLUMNS if name in parquet.schema_arrow.names]
        for batch in iterate_kept(parquet, columns, excluded, _BATCH_ROWS):
            yield from (row for row in batch.to_pylist() if row["status"] == RowStatus.ACCEPTED)


def find_problem(
    row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, template_kwargs: dict[str, Any], transfer: Transfer
) -> str | None:
    """Return what is wrong with a row and how to mend it, as one phrase; None when nothing is.

    A row has ``prompt_token_ids`` and ``completion_token_ids`` as the student will see them, and ``prompt``,
    ``completion`` and ``finish_reason`` where the data has them.
    """
    prompt_ids, completion_ids = row["prompt_token_ids"] or [], row["completion_token_ids"] or []
    if not completion_ids:
        return None  # bears no loss, and is left out
    problem = _find_token_problem(prompt_ids, completion_ids, tokenizer)
    if problem is None and row.get("completion") is not None:
        problem = _find_lost_text(row["completion"], completion_ids, tokenizer)
    if problem is None and row.get("prompt") is not None:
        problem = _find_template_problem(row, prompt_ids, tokenizer, template_kwargs, transfer)
    if problem is None and row.get("finish_reason") != "length":  # what was cut off has no end and may be mid-thought
        problem = _find_missing_end(completion_ids, tokenizer) or _find_open_thinking(
            prompt_ids, completion_ids, tokenizer
        )
    return problem


def _find_token_problem(
    prompt_ids: list[int], completion_ids: list[int], tokenizer: PreTrainedTokenizerBase
) -> str | None:
    if (largest := max(*prompt_ids, *completion_ids, 0)) >= len(tokenizer):
        return (
            f"it has the token {largest} and the student's tokenizer has {len(tokenizer)} tokens; "
            "set student.transfer=text"
        )
    if not prompt_ids:
        return "it has no prompt tokens, so its loss would be on the whole row; plan and generate the rows again"
    return None


def _find_topk_problem(row: dict[str, Any]) -> str | None:
    ids, logprobs = (row.get(f"completion_topk_{name}") or [] for name in ("ids", "logprobs"))
    if ids and len(ids) == len(logprobs) and len(ids) % len(row["completion_token_ids"]) == 0:
        return None
    num_tokens = len(row["completion_token_ids"])
    return (
        f"training.objective.kl_weight needs log-probabilities of each of its {num_tokens} tokens "
        f"and it has {len(ids)} ids and {len(logprobs)} log-probabilities; generate with sampling.top_logprobs"
    )


def _find_lost_text(completion: str, ids: list[int], tokenizer: PreTrainedTokenizerBase) -> str | None:
    # With its special tokens too: what one tokenizer drops as special, another may keep as text.
    readings = [tokenizer.decode(ids, skip_special_tokens=skip) for skip in (True, False)]
    if any(_squeezed(completion) in _squeezed(reading) for reading in readings):
        return None
    return (
        f"its completion {_shown(completion)} becomes tokens that read {_shown(readings[0])}; take a student whose "
        "tokenizer knows these characters, or student.transfer=text if the tokens are another tokenizer's"
    )


def _find_template_problem(
    row: dict[str, Any],
    prompt_ids: list[int],
    tokenizer: PreTrainedTokenizerBase,
    template_kwargs: dict[str, Any],
    transfer: Transfer,
) -> str | None:
    messages = as_messages(row["prompt"], tokenizer)
    if messages is None:
        return None
    if transfer is Transfer.TOKEN_IDS:
        expected = _answer_opening(row["prompt"], tokenizer, template_kwargs)
        found = prompt_ids[-len(expected) :] if expected else []
        if found == expected:
            return None
        return (
            f"its prompt ends with {tokenizer.decode(found)!r} and the student's chat template begins an answer with "
            f"{tokenizer.decode(expected)!r}; give the student the teacher's chat template, or set "
            "student.transfer=text"
        )
    prompt = _OPEN_THINKING.sub("", render_prompt(messages, tokenizer, template_kwargs))
    # Templates drop or reformat the thinking of an answer; where the answer itself stands is what is asked.
    answer = row["completion"].rsplit("</think>", 1)[-1].strip()
    if not answer:
        return None
    turn = {"role": "assistant", "content": answer}
    try:
        whole = tokenizer.apply_chat_template([*messages, turn], tokenize=False, **template_kwargs)
    except TemplateError as error:
        return (
            f"the student's chat template refuses this prompt with its answer {_shown(answer)} ({error}); leave such "
            "rows out or take a student whose template allows them"
        )
    frame, found_answer, _ = whole.removeprefix(prompt).partition(answer)
    if whole.startswith(prompt) and found_answer and _THINKING_FRAME.fullmatch(frame):
        return None
    return (
        f"the student's chat template writes this answer as {_shown(whole[-len(answer) - 80 :])}, and the loss would "
        f"be on the completion right after {_shown(prompt[-40:])}; take a student with a plain chat template"
    )


def _answer_opening(prompt: str, tokenizer: PreTrainedTokenizerBase, template_kwargs: dict[str, Any]) -> list[int]:
    """Return the tokens that the template puts before an answer; a date in a system message is not among them."""
    with_opening = encode_prompt(prompt, tokenizer, template_kwargs)
    without = encode_prompt(prompt, tokenizer, {**template_kwargs, "add_generation_prompt": False})
    return with_opening[len(without) :] if with_opening[: len(without)] == without else []


def _find_missing_end(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> str | None:
    if tokenizer.eos_token_id is None or ids[-1] in _special_ids(tokenizer):
        return None
    return (
        f"its completion ends with {tokenizer.decode(ids[-8:])!r} and no end of turn, so nothing teaches to stop; let "
        "the teacher end by itself instead of by sampling.stop"
    )


def _find_open_thinking(
    prompt_ids: list[int], completion_ids: list[int], tokenizer: PreTrainedTokenizerBase
) -> str | None:
    completion = tokenizer.decode(completion_ids)
    is_open = bool(_OPEN_THINKING.search(tokenizer.decode(prompt_ids[-16:])))
    opened, closed = is_open + completion.count("<think>"), completion.count("</think>")
    if opened == closed:
        return None
    return (
        f"its thinking is opened {opened} times and closed {closed} times ({_shown(completion)}); take a student whose "
        "chat template opens an answer as the teacher's does, or leave such rows out"
    )


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | set(tokenizer.all_special_ids)


def _squeezed(text: str) -> str:
    return "".join(text.split())  # tokenizers differ in what they do to white space


def _shown(text: str) -> str:
    return repr(text if len(text) <= 120 else f"{text[:60]} … {text[-50:]}")
