"""Rows that a job derives from its data, once, as Parquet of token ids that is read like any other.

Text transfer tokenises prompts and completions anew with the student's tokenizer; ground truth makes rows of reference
answers. Each rank writes its share of the files, which are the same for any number of ranks; a resumed job finds them
again.
"""

import json
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from configs.errors import UserError
from configs.table import LOGPROBS, TOKEN_IDS, RowStatus
from training import storage
from training.corpus import check_file, sha256_of
from training.job import DataFile, TrainJob, Transfer
from training.parallel import World
from training.quarantine import Exclusions, iterate_kept

_SCHEMA = pa.schema(
    [
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("prompt_token_ids", TOKEN_IDS),
        pa.field("completion_token_ids", TOKEN_IDS),
    ]
)
_REFERENCE_SCHEMA = pa.schema(
    [*_SCHEMA, pa.field("completion_topk_ids", TOKEN_IDS), pa.field("completion_topk_logprobs", LOGPROBS)]
)
_BATCH_ROWS = 4096

# From a batch of rows to the rows that are learnt in their place.
_Convert = Callable[[list[dict[str, Any]]], pa.Table]


def tokenise_files(job: TrainJob, tokenizer: PreTrainedTokenizerBase, world: World) -> tuple[DataFile, ...]:
    """Return the job's accepted rows as token-id files under ``<output_dir>/tokenised``, made unless they are there.

    UserError when the prompts are chats and the tokenizer has no chat template.
    """

    def convert(rows: list[dict[str, Any]]) -> pa.Table:
        accepted = [row for row in rows if row["status"] == RowStatus.ACCEPTED]
        return tokenise_rows(accepted, tokenizer, job.template_kwargs)

    columns = ["prompt_id", "status", "prompt", "completion", "finish_reason"]
    return _derive_files(job, world, "tokenised", columns, _SCHEMA, convert)


def write_reference_rows(job: TrainJob, tokenizer: PreTrainedTokenizerBase, world: World) -> tuple[DataFile, ...]:
    """Return rows of reference answers under ``<output_dir>/reference``, made unless they are there.

    They are the share ``training.objective.ground_truth_share`` of the prompts that have an answer, one row each.
    UserError when no prompt has one.
    """
    share = job.training.objective.ground_truth_share

    def convert(rows: list[dict[str, Any]]) -> pa.Table:
        # All samples of a prompt are neighbours in one file.
        first = {row["prompt_id"]: row for row in rows if row["sample_index"] == 0 and row["answer"] is not None}
        chosen = [row for prompt_id, row in first.items() if zlib.crc32(f"{prompt_id}/answer".encode()) < share * 2**32]
        prompt_ids = {row["prompt_id"]: row["prompt_token_ids"] for row in chosen}
        answers = [
            {**row, "completion": row["answer"], "status": str(RowStatus.ACCEPTED), "finish_reason": "stop"}
            for row in chosen
            if job.transfer is Transfer.TEXT or prompt_ids[row["prompt_id"]]
        ]
        columns = tokenise_rows(answers, tokenizer, job.template_kwargs).to_pydict()
        if job.transfer is Transfer.TOKEN_IDS:  # the very tokens that the teacher was given
            columns["prompt_token_ids"] = [prompt_ids[prompt_id] for prompt_id in columns["prompt_id"]]
        nulls = [None] * len(answers)
        columns |= {"completion_topk_ids": nulls, "completion_topk_logprobs": nulls}
        return pa.Table.from_pydict(columns, schema=_REFERENCE_SCHEMA)

    columns = ["prompt_id", "sample_index", "answer", "prompt", "prompt_token_ids"]
    files = _derive_files(job, world, "reference", columns, _REFERENCE_SCHEMA, convert)
    if not sum(file.num_rows for file in files):
        raise UserError(
            "training.objective.ground_truth_share is above 0 and no prompt has a reference answer; give prompts with "
            "an answer (prompts.answer_column), or set it to 0"
        )
    return files


def _derive_files(
    job: TrainJob, world: World, name: str, columns: list[str], schema: pa.Schema, convert: _Convert
) -> tuple[DataFile, ...]:
    directory = storage.join(job.output_dir, name)
    manifest = storage.join(directory, "manifest.json")
    entries: list[dict[str, Any]] | None = world.broadcast(storage.read_json(manifest) if world.rank == 0 else None)
    if entries is None:
        with world.agreement():
            mine = [
                (number, _write_part(job, number, directory, columns, schema, convert))
                for number in range(world.rank, len(job.files), world.size)
            ]
        written = dict(pair for pairs in world.gather(mine) for pair in pairs)
        entries = [written[number] for number in range(len(job.files))]
        if world.rank == 0:
            storage.write_text(manifest, json.dumps(entries))
    return tuple(DataFile(storage.join(directory, e["name"]), e["num_rows"], e["sha256"]) for e in entries)


def _write_part(
    job: TrainJob, number: int, directory: str, columns: list[str], schema: pa.Schema, convert: _Convert
) -> dict[str, Any]:
    """Write the rows derived from one file; return what the manifest has of it."""
    file, name, num_rows = job.files[number], f"part-{number:06d}.parquet", 0
    check_file(file)
    with storage.replaced_file(storage.join(directory, name)) as local:
        with pq.ParquetWriter(local, schema) as writer:
            for rows in _read_batches(file, columns, job.excluded):
                table = convert(rows)
                if table.num_rows:
                    writer.write_table(table)
                num_rows += table.num_rows
        digest = sha256_of(str(local))
    return {"name": name, "num_rows": num_rows, "sha256": digest}


def _read_batches(file: DataFile, wanted: list[str], excluded: Exclusions) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows that may be learnt, with the wanted columns, None where the file has no such column."""
    fs, path = storage.open_filesystem(file.path)
    with fs.open(path, "rb") as handle:
        parquet = pq.ParquetFile(handle)
        columns = [name for name in wanted if name in parquet.schema_arrow.names]
        absent = dict.fromkeys(set(wanted) - set(columns))
        for batch in iterate_kept(parquet, columns, excluded, _BATCH_ROWS):
            yield [{**row, **absent} for row in batch.to_pylist()]


def tokenise_rows(
    rows: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, template_kwargs: dict[str, Any]
) -> pa.Table:
    """Return ``prompt_id``, ``status`` and token ids of rows given by ``prompt``, ``completion``, ``finish_reason``."""
    eos = tokenizer.eos_token_id
    if not rows:
        return _SCHEMA.empty_table()
    completions = tokenizer([row["completion"] or "" for row in rows], add_special_tokens=False)["input_ids"]
    for row, ids in zip(rows, completions, strict=True):
        # A completion that was cut off did not end: teaching an end there would teach to stop in mid-sentence.
        if eos is not None and row.get("finish_reason") != "length" and ids[-1:] != [eos]:
            ids.append(eos)
    columns = {
        "prompt_id": [row["prompt_id"] for row in rows],
        "status": [row["status"] for row in rows],
        "prompt_token_ids": [encode_prompt(row["prompt"], tokenizer, template_kwargs) for row in rows],
        "completion_token_ids": completions,
    }
    return pa.Table.from_pydict(columns, schema=_SCHEMA)


def encode_prompt(prompt: str, tokenizer: PreTrainedTokenizerBase, template_kwargs: dict[str, Any]) -> list[int]:
    """Return the token ids of a row's ``prompt``, a JSON string or a JSON list of messages.

    Messages go through the chat template, up to where the assistant's answer begins; a string is a user's message
    where there is a template, and raw text where there is none. UserError when there is no template for messages, or
    it refuses them.
    """
    messages = as_messages(prompt, tokenizer)
    if messages is None:
        return list(tokenizer(json.loads(prompt))["input_ids"])
    text = render_prompt(messages, tokenizer, template_kwargs)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def as_messages(prompt: str, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]] | None:
    """Return a row's ``prompt`` as messages, or None for raw text. UserError when messages have no template."""
    content = json.loads(prompt)
    has_template = tokenizer.chat_template is not None
    if isinstance(content, str):
        return [{"role": "user", "content": content}] if has_template else None
    if not has_template:
        raise UserError(
            "the prompts are chats and the student's tokenizer has no chat template; give prompts as plain strings "
            "or a student whose tokenizer has a chat template"
        )
    return list(content)


def render_prompt(
    messages: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, template_kwargs: dict[str, Any]
) -> str:
    """Return the text of messages up to where the assistant's answer begins. UserError when the template refuses."""
    arguments = {"add_generation_prompt": True, **template_kwargs}
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **arguments))
    except TemplateError as error:
        shown = json.dumps(messages, ensure_ascii=False)[:120]
        raise UserError(
            f"the student's chat template refuses the prompt {shown!r} ({error}); leave such prompts out or take a "
            "student whose template allows them"
        ) from error
