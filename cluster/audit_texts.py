"""Reads what an audit looks at: rows of a run, lines of JSON, or text, as token ids of the teacher's tokenizer."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import IO, Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from configs.errors import UserError
from configs.table import SPEC_KEY, RowStatus

TEXT_COLUMNS = ("completion", "text")
_ROWS_AT_ONCE = 1024

Encode = Callable[[str], list[int]]


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One text: what a teacher wrote, or may have written, and the prompt where it is known."""

    token_ids: list[int]
    prompt_ids: list[int] = field(default_factory=list)


def read_texts(uri: str, tokenizer: str | None, limit: int) -> list[TokenRow]:
    """The first ``limit`` texts of a file, or of all Parquet files below a directory.

    Parquet files have ``completion_token_ids``, of which accepted rows count, or a column ``completion`` or ``text``;
    lines of JSON have ``token_ids``, ``completion`` or ``text``; any other file is one text. Text needs ``tokenizer``.

    Raises:
        UserError: there is nothing to read, or it is of another form.
    """
    filesystem, path = fsspec.url_to_fs(uri)
    encode = _encoder(tokenizer)
    try:
        files = _files(filesystem, path)
        rows = list(islice((row for file in files for row in _read_file(filesystem, file, encode)), limit))
    except (OSError, pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise UserError(f"{uri} cannot be read ({error}); give a Parquet, JSONL or text file, or a directory") from None
    if not rows:
        raise UserError(f"{uri} has no text; of a run's completions only accepted rows count")
    return rows


def read_mark(uri: str) -> dict[str, Any] | None:
    """What Parquet files of a run say of the mark on their rows: `WatermarkConfig.recorded`; None without one.

    Raises:
        UserError: files below the directory have different marks.
    """
    filesystem, path = fsspec.url_to_fs(uri)
    marks = list[dict[str, Any]]()
    try:
        for file in _files(filesystem, path):
            if file.endswith(".parquet") and (mark := _mark_of(filesystem, file)) is not None and mark not in marks:
                marks.append(mark)
    except (OSError, pa.ArrowInvalid):
        return None  # reading the texts says what is wrong
    if len(marks) > 1:
        ids = " and ".join(sorted({mark["key_id"] for mark in marks}))
        raise UserError(f"the files below {uri} have different marks (of the keys {ids}); audit them one by one")
    return marks[0] if marks else None


def _mark_of(filesystem: Any, path: str) -> dict[str, Any] | None:
    with filesystem.open(path, "rb") as file:
        text = (pq.read_metadata(file).metadata or {}).get(SPEC_KEY.encode())
    mark: dict[str, Any] | None = None if text is None else json.loads(text)["engine"].get("watermark")
    return mark


def _files(filesystem: Any, path: str) -> list[str]:
    if not filesystem.isdir(path):
        return [path]
    return sorted(each for each in filesystem.find(path) if each.endswith(".parquet"))


def _encoder(tokenizer: str | None) -> Encode:
    if tokenizer is None:
        return _refuse_text
    from training.model import load_tokenizer  # loads torch; token ids do without it

    loaded = load_tokenizer(tokenizer)
    return lambda text: list(loaded(text, add_special_tokens=False)["input_ids"])


def _refuse_text(_: str) -> list[int]:
    raise UserError("text has to be turned into the teacher's tokens: give --tokenizer, its directory or OWNER/NAME")


def _read_file(filesystem: Any, path: str, encode: Encode) -> Iterator[TokenRow]:
    with filesystem.open(path, "rb") as file:
        if path.endswith(".parquet"):
            yield from _read_parquet(file, path, encode)
        elif path.endswith((".jsonl", ".json")):
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _read_line(line, f"{path}, line {number}", encode)
        elif text := file.read().decode("utf-8").strip():
            yield TokenRow(encode(text))


def _read_parquet(file: IO[bytes], path: str, encode: Encode) -> Iterator[TokenRow]:
    parquet = pq.ParquetFile(file)
    names = set(parquet.schema_arrow.names)
    if "completion_token_ids" in names:
        wanted = ["completion_token_ids", *(names & {"prompt_token_ids", "status"})]
        for batch in parquet.iter_batches(_ROWS_AT_ONCE, columns=wanted):
            for row in batch.to_pylist():
                if row.get("status", RowStatus.ACCEPTED) == RowStatus.ACCEPTED and row["completion_token_ids"]:
                    yield TokenRow(row["completion_token_ids"], row.get("prompt_token_ids") or [])
        return
    column = next((each for each in TEXT_COLUMNS if each in names), None)
    if column is None:
        raise UserError(f"{path} must have a column completion_token_ids, completion or text, and has {sorted(names)}")
    for batch in parquet.iter_batches(_ROWS_AT_ONCE, columns=[column]):
        yield from (TokenRow(encode(text)) for text in batch.column(0).to_pylist() if text)


def _read_line(line: bytes, place: str, encode: Encode) -> TokenRow:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{place} is not JSON: {error}") from None
    if isinstance(row, dict):
        if isinstance(ids := row.get("token_ids"), list) and all(isinstance(each, int) for each in ids):
            return TokenRow(ids)
        for name in TEXT_COLUMNS:
            if isinstance(text := row.get(name), str):
                return TokenRow(encode(text))
    raise UserError(f"{place} must be an object with token_ids (a list of integers), completion or text")
