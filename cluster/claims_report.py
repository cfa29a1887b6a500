"""``stillhouse terms lint``: rows of anybody's table that say they are another maker's model, by name.

Reads a run's completions, any Delta table, and Parquet or JSONL files, a few hundred rows at a time.
"""

import gzip
import json
import posixpath
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable

from cluster.claims import own_makers_by_row
from configs.claims import load_claims
from configs.errors import UserError
from configs.table import RowStatus
from configs.terms.records import Source
from services.claim_count import BATCH_ROWS, OwnMakers
from services.claims import claims_in_column

FILES = (".parquet", ".jsonl", ".jsonl.gz")
TEXT_COLUMNS = ("completion", "response", "output", "messages", "conversations", "text")  # the first that is there
OTHER_COLUMNS = ("prompt_id", "sample_index", "status", "teacher_repo")
# Who speaks in a chat, and what they say: as chats are written today, and as ShareGPT wrote them.
SPEAKERS, SAYINGS, MODELS = ("role", "from"), ("content", "value"), ("assistant", "gpt", "model")


@dataclass(frozen=True, slots=True)
class Part:
    """Some rows of a table: where the first of them stands in which file, and the columns that are looked at."""

    file: str
    first: int
    rows: dict[str, list[Any]]

    def __len__(self) -> int:
        return len(next(iter(self.rows.values())))

    def column(self, name: str) -> list[Any]:
        return self.rows.get(name, [None] * len(self))

    def name(self, number: int) -> str:
        """A row's id where it has one, or else its file and number, from 1."""
        prompt_id, sample = self.column("prompt_id")[number], self.column("sample_index")[number]
        if prompt_id is not None:
            return str(prompt_id) if sample is None else f"{prompt_id}/{sample}"
        return f"{self.file}:{self.first + number + 1}"


def print_claims(place: str, teachers: tuple[str, ...], column: str | None, show: int) -> int:
    """Print what the rows claim, and name those that claim another maker's model; returns the exit status.

    Raises:
        UserError: there is no table, or no column with texts.
    """
    own_makers, table = _own_makers(place, teachers), load_claims()
    others, named, rows, accepted = Counter[str](), Counter[str](), 0, 0
    for part in _read(place, column):
        rows += len(part)
        own = [own_makers(each) for each in part.column("teacher_repo")]
        for number, claim in claims_in_column(pa.array(part.column("text"), pa.string()), own):
            if claim.maker in own[number]:
                named[claim.maker] += 1
                continue
            status = part.column("status")[number]
            others[claim.maker] += 1
            accepted += status in (RowStatus.ACCEPTED, None)
            if others.total() <= show:
                state = f" ({status})" if status else ""
                print(f"{part.name(number)}{state}: {table.name_of(claim.maker)}: {claim.words!r}")
    told = f" ({', '.join(f'{table.name_of(each)} {number:,}' for each, number in others.most_common())})"
    kept = f", {accepted:,} of them accepted" if accepted != others.total() else ""
    names = f"; {named.total():,} the teacher's own name" if named else ""
    print(f"{rows:,} rows, {others.total():,} claim to be another maker's model{told if others else ''}{kept}{names}")
    return 1 if others else 0


def _own_makers(place: str, teachers: tuple[str, ...]) -> OwnMakers:
    """By what the caller says; else by each row's ``teacher_repo``, with the bases that a run's manifest knows of."""
    if teachers:
        makers = load_claims().makers_of(*teachers)
        return lambda _: makers
    filesystem, path = fsspec.url_to_fs(posixpath.join(place.rstrip("/"), "manifest.json"))
    if not filesystem.isfile(path):
        return own_makers_by_row(())
    terms = json.loads(filesystem.cat_file(path)).get("terms") or {"sources": []}
    return own_makers_by_row(tuple(Source.model_validate(each) for each in terms["sources"]))


def _read(place: str, column: str | None) -> Iterator[Part]:
    for table in (posixpath.join(place.rstrip("/"), "completions"), place.rstrip("/")):
        filesystem, path = fsspec.url_to_fs(posixpath.join(table, "_delta_log"))
        if filesystem.isdir(path):
            files = DeltaTable(table).file_uris()
            break
    else:
        files = _list_files(place)
    for file in files:
        yield from _read_parquet(file, column) if file.endswith(".parquet") else _read_jsonl(file, column)


def _list_files(place: str) -> list[str]:
    filesystem, path = fsspec.url_to_fs(place)
    files = [path] if filesystem.isfile(path) else sorted(filesystem.find(path))
    found = [filesystem.unstrip_protocol(each) for each in files if each.endswith(FILES)]
    if not found:
        raise UserError(
            f"{place} is no table: give a run's directory, a Delta table, or files ending in {', '.join(FILES)}"
        )
    return found


def _read_parquet(file: str, column: str | None) -> Iterator[Part]:
    first = 0
    try:
        with fsspec.open(file, "rb") as opened:
            parquet = pq.ParquetFile(opened)
            names = parquet.schema_arrow.names
            text = _text_column(names, column, file)
            known = [name for name in OTHER_COLUMNS if name in names]
            for batch in parquet.iter_batches(batch_size=BATCH_ROWS, columns=[text, *known]):
                rows = {name: batch.column(name).to_pylist() for name in known}
                texts = [_model_says(each) for each in batch.column(text).to_pylist()]
                yield Part(file, first, {"text": texts, **rows})
                first += batch.num_rows
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{file} cannot be read as a Parquet file ({error})") from None


def _read_jsonl(file: str, column: str | None) -> Iterator[Part]:
    first = 0
    with fsspec.open(file, "rb") as opened, gzip.open(opened) if file.endswith(".gz") else opened as lines:
        while rows := [_row(line, file) for line in islice(lines, BATCH_ROWS)]:
            texts = [_model_says(row[_text_column(list(row), column, file)]) if row else "" for row in rows]
            texts = [(text or "").encode(errors="replace").decode() for text in texts]  # JSON may have half a character
            others = {name: [row.get(name) for row in rows] for name in OTHER_COLUMNS}
            yield Part(file, first, {"text": texts, **others})
            first += len(rows)


def _row(line: bytes, file: str) -> dict[str, Any]:
    """A line's object; an empty one for an empty line, so that lines keep their numbers."""
    try:
        row = json.loads(line) if line.strip() else {}
    except ValueError as error:
        raise UserError(f"{file}: {line[:60]!r} is no JSON ({error}); give a file with one object a line") from None
    if not isinstance(row, dict):
        raise UserError(f"{file}: {line[:60]!r} is no object; give a file with one object a line")
    return row


def _text_column(names: list[str], column: str | None, file: str) -> str:
    wanted = TEXT_COLUMNS if column is None else (column,)
    found = next((each for each in wanted if each in names), None)
    if found is None:
        raise UserError(
            f"{file} has no column {' or '.join(wanted)}; name the one with texts or chats by --column, of "
            f"{', '.join(names) or 'none'}"
        )
    return found


def _model_says(value: Any) -> str | None:
    """A text as it is; of a chat what the model says in it."""
    if isinstance(value, str) or value is None:
        return value
    if not isinstance(value, list):
        return None
    turns = [turn for turn in value if isinstance(turn, dict)]
    said = [turn for turn in turns if any(turn.get(key) in MODELS for key in SPEAKERS)]
    return "\n\n".join(str(turn[key]) for turn in said for key in SAYINGS if isinstance(turn.get(key), str))
