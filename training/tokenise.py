"""Text transfer: tokenises prompts and completions anew with the student's tokenizer, once, into Parquet of token ids.

After that a text job is read like any other. Rank 0 writes, the others wait; a resumed job finds the file again.
"""

import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from configs.errors import UserError
from configs.table import TOKEN_IDS, RowStatus
from training import storage
from training.corpus import check_file, sha256_of
from training.job import DataFile, TrainJob
from training.parallel import World

_SCHEMA = pa.schema(
    [
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("prompt_token_ids", TOKEN_IDS),
        pa.field("completion_token_ids", TOKEN_IDS),
    ]
)
_BATCH_ROWS = 4096


def tokenise_files(job: TrainJob, tokenizer: PreTrainedTokenizerBase, world: World) -> tuple[DataFile, ...]:
    """Return the job's accepted rows as token-id files under ``<output_dir>/tokenised``, made unless they are there.

    UserError when the prompts are chats and the tokenizer has no chat template.
    """
    directory = storage.join(job.output_dir, "tokenised")
    manifest = storage.join(directory, "manifest.json")
    with world.agreement():
        if world.rank == 0 and storage.read_json(manifest) is None:
            storage.write_text(manifest, json.dumps(_write_all(job, tokenizer, directory)))
    world.barrier()
    entries = storage.read_json(manifest)
    assert entries is not None
    return tuple(DataFile(storage.join(directory, e["name"]), e["num_rows"], e["sha256"]) for e in entries)


def _write_all(job: TrainJob, tokenizer: PreTrainedTokenizerBase, directory: str) -> list[dict[str, Any]]:
    with storage.replaced_directory(directory) as local:
        entries = []
        for number, file in enumerate(job.files):
            check_file(file)
            target = local / f"part-{number:06d}.parquet"
            num_rows = _tokenise_file(file, target, tokenizer, job.template_kwargs)
            entries.append({"name": target.name, "num_rows": num_rows, "sha256": sha256_of(str(target))})
    return entries


def _tokenise_file(
    file: DataFile, target: Any, tokenizer: PreTrainedTokenizerBase, template_kwargs: dict[str, Any]
) -> int:
    num_rows = 0
    fs, path = storage.open_filesystem(file.path)
    with fs.open(path, "rb") as handle, pq.ParquetWriter(target, _SCHEMA) as writer:
        parquet = pq.ParquetFile(handle)
        wanted = ["prompt_id", "status", "prompt", "completion", "finish_reason"]
        columns = [name for name in wanted if name in parquet.schema_arrow.names]
        for batch in parquet.iter_batches(batch_size=_BATCH_ROWS, columns=columns):
            rows = [row for row in batch.to_pylist() if row["status"] == RowStatus.ACCEPTED]
            if rows:
                writer.write_table(tokenise_rows(rows, tokenizer, template_kwargs))
            num_rows += len(rows)
    return num_rows


def tokenise_rows(
    rows: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, template_kwargs: dict[str, Any]
) -> pa.Table:
    """Return ``prompt_id``, ``status`` and token ids of rows given by ``prompt``, ``completion``, ``finish_reason``."""
    eos = tokenizer.eos_token_id
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
