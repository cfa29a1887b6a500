"""Reads prompts from wherever a recipe says they are: JSONL, Parquet, a directory of either, or a Hub data set.

A prompt's id is a hash of its content and nothing else, so reordering or extending a source changes no id.
"""

import hashlib
import json
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from gzip import BadGzipFile
from itertools import islice
from typing import Any

import fsspec
import pyarrow.parquet as pq

from configs.errors import UserError
from configs.schema import AdditionConfig, BrokenLinePolicy, PromptsConfig
from services.addition import draw_problems

HUB_PREFIX = "hf://datasets/"
READ_ROWS = 1024  # rows of one Parquet batch: bounds memory whatever the size of a row group


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt; ``prompt`` is canonical JSON of a string or of a list of role and content.

    A line that could not be read keeps its raw text as ``prompt`` and says why in ``error``. ``teacher`` is None where
    a recipe has only one.
    """

    prompt_id: str
    prompt: str
    answer: str | None = None
    error: str | None = None
    teacher: str | None = None


@dataclass(frozen=True, slots=True)
class _Row:
    value: dict[str, Any]
    place: str
    error: str | None = None


def read_prompts(config: PromptsConfig, teachers: tuple[str, ...] = ()) -> Iterator[Prompt]:
    """Yield the prompts of a source in its own order, duplicates included; ``teachers`` are those of the recipe.

    Raises:
        UserError: the source is missing, is of an unknown kind, or has a broken line and the recipe refuses those.
    """
    if config.addition is not None:
        problems = read_addition(config.addition, held_out=False)
        prompts: Iterable[Prompt] = (replace(each, teacher=config.default_teacher) for each in problems)
    else:
        assert config.source is not None
        prompts = (_to_prompt(row, config, teachers) for row in _read_rows(config.source, config))
    return islice(prompts, config.limit)


def read_addition(config: AdditionConfig, *, held_out: bool) -> Iterator[Prompt]:
    """The built-in problems as chats of one user message."""
    for problem in draw_problems(config, held_out=held_out):
        yield make_prompt([{"role": "user", "content": problem.prompt}], problem.answer)


def make_prompt(content: str | list[dict[str, Any]], answer: str | None = None) -> Prompt:
    """A prompt with its id: the first 32 hex digits of SHA-256 over the canonical JSON of the content."""
    text = json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return Prompt(hashlib.sha256(text.encode()).hexdigest()[:32], text, answer)


def _to_prompt(row: _Row, config: PromptsConfig, teachers: tuple[str, ...]) -> Prompt:
    teacher = row.value.get(config.teacher_column or "") or config.default_teacher
    problem = row.error or _shape_error(row.value, config) or _teacher_error(teacher, config, teachers)
    if problem is None:
        messages = row.value.get(config.messages_column)
        answer = row.value.get(config.answer_column)
        content = messages if messages is not None else row.value[config.prompt_column]
        return replace(make_prompt(content, None if answer is None else str(answer)), teacher=teacher)
    if config.on_broken_line is BrokenLinePolicy.REFUSE:
        raise UserError(
            f"{row.place}: {problem}; mend the line, or set prompts.on_broken_line=fail_row to keep it as a failed row"
        )
    raw = json.dumps(row.value, sort_keys=True, default=str)  # escaped: what is broken may be a character
    prompt_id = hashlib.sha256(raw.encode()).hexdigest()[:32]
    anyone = teachers[0] if teachers else None  # such a row is asked of nobody
    return Prompt(prompt_id, raw, error=f"{row.place}: {problem}", teacher=anyone)


def _shape_error(value: dict[str, Any], config: PromptsConfig) -> str | None:
    messages = value.get(config.messages_column)
    if messages is None:
        prompt = value.get(config.prompt_column)
        if prompt is None:
            return f"has neither {config.messages_column!r} (prompts.messages_column) nor {config.prompt_column!r}"
        if not isinstance(prompt, str) or not prompt:
            return f"{config.prompt_column!r} must be a non-empty string"
        return None if _is_text(prompt) else f"{config.prompt_column!r} has half a character (a lone surrogate)"
    if not isinstance(messages, list) or not messages:
        return f"{config.messages_column!r} must be a non-empty list of role and content"
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str) or "content" not in message:
            return f"each of {config.messages_column!r} needs a role and a content"
    return None if _is_text(json.dumps(messages, ensure_ascii=False, default=str)) else "has half a character"


def _teacher_error(teacher: Any, config: PromptsConfig, teachers: tuple[str, ...]) -> str | None:
    if not teachers or teacher in teachers:
        return None
    known = f"the recipe has {', '.join(teachers)}"
    if teacher is None:
        return (
            f"names no teacher in {config.teacher_column!r} (prompts.teacher_column), "
            f"and no prompts.default_teacher is set; {known}"
        )
    return f"{config.teacher_column!r} (prompts.teacher_column) names the teacher {teacher!r}; {known}"


def _is_text(text: str) -> bool:
    """Whether it can be stored: JSON may escape half of a surrogate pair, which is no character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_rows(source: str, config: PromptsConfig) -> Iterator[_Row]:
    if source.startswith(HUB_PREFIX):
        yield from _read_hub(source.removeprefix(HUB_PREFIX), config.subset, config.split)
        return
    for path in _list_files(source):
        yield from _read_parquet(path) if path.endswith(".parquet") else _read_jsonl(path)


def _list_files(source: str) -> list[str]:
    filesystem, path = fsspec.url_to_fs(source)
    if filesystem.isfile(path):
        files = [path]
    elif filesystem.isdir(path):
        files = sorted(each for each in filesystem.find(path) if _is_prompt_file(each))
    else:
        raise UserError(f"prompts.source: there is no file or directory {source}")
    if not files or not all(_is_prompt_file(each) for each in files):
        raise UserError(f"prompts.source: {source} must be, or hold, .jsonl, .jsonl.gz or .parquet files")
    return [filesystem.unstrip_protocol(each) for each in files]


def _is_prompt_file(path: str) -> bool:
    return path.endswith((".jsonl", ".jsonl.gz", ".parquet"))


def _read_lines(path: str) -> Generator[bytes]:
    try:
        with fsspec.open(path, "rb", compression="infer") as file:
            yield from file
    except (EOFError, BadGzipFile) as error:
        raise UserError(f"prompts.source: {path.removeprefix('file://')} cannot be unpacked ({error})") from None


def _read_jsonl(path: str) -> Iterator[_Row]:
    with closing(_read_lines(path)) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            place = f"{path.removeprefix('file://')}:{number}"
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield _Row({"line": line.decode(errors="replace").rstrip("\n")}, place, f"is not JSON ({error})")
                continue
            if isinstance(value, dict):
                yield _Row(value, place)
            else:
                yield _Row({"line": value}, place, "is not a JSON object")


def _read_parquet(path: str) -> Iterator[_Row]:
    with fsspec.open(path, "rb") as file:
        try:
            parquet = pq.ParquetFile(file)
        except (OSError, ValueError) as error:
            raise UserError(f"prompts.source: {path} is not a Parquet file ({error})") from None
        number = 0
        for batch in parquet.iter_batches(batch_size=READ_ROWS):
            for value in batch.to_pylist():
                # Parquet gives every message each field that any of them has.
                value = {key: _without_nulls(field) for key, field in value.items()}
                yield _Row(value, f"{path.removeprefix('file://')}, row {number}")
                number += 1


def _without_nulls(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_nulls(each) for each in value]
    if isinstance(value, dict):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    return value


def _read_hub(name: str, subset: str | None, split: str) -> Iterator[_Row]:
    from datasets import load_dataset  # costs a second, and only Hub data sets need it

    try:
        rows = load_dataset(name, subset, split=split, streaming=True)
    except (OSError, ValueError) as error:
        raise UserError(f"prompts.source: the Hub data set {name} (split {split}) cannot be read: {error}") from error
    for number, value in enumerate(rows):
        yield _Row(dict(value), f"{HUB_PREFIX}{name}, row {number}")
