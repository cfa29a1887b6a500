"""Reads what the student may learn from: checks the files, measures the rows, and fetches rows when they are due.

Rows are measured in one pass that keeps a few bytes a row; token ids are read again, row group by row group, when
their turn comes. Which rows count is decided here, in what order by `training.plan`.
"""

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from configs.errors import UserError
from configs.schema import TrainingConfig
from configs.table import RowStatus
from training.job import DataFile
from training.parallel import World
from training.quarantine import Exclusions, exclusion_columns, find_excluded
from training.storage import open_filesystem

Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]
Float32s = npt.NDArray[np.float32]

_TOKEN_COLUMNS = ["prompt_token_ids", "completion_token_ids"]
_TOPK_COLUMNS = ["completion_topk_ids", "completion_topk_logprobs"]
_READ_BYTES = 8 << 20
# Rows measured at a time; with candidates, of which a row has a hundred times as many bytes, fewer.
_BATCH_ROWS, _TOPK_BATCH_ROWS = 65_536, 1024


@dataclass(frozen=True, slots=True)
class RowGroup:
    """One Parquet row group, the unit of reading; its rows are ``first_row`` and the following of the corpus."""

    path: str
    index: int
    num_rows: int
    first_row: int


@dataclass(frozen=True, slots=True)
class Corpus:
    """Measures of every row of the files, in file order, and which of them are used.

    ``lengths`` are prompt plus completion (tokens); ``loss_lengths`` the part of them that bears a loss.
    """

    groups: tuple[RowGroup, ...]
    lengths: Int32s
    loss_lengths: Int32s
    is_training: npt.NDArray[np.bool_]
    is_evaluation: npt.NDArray[np.bool_]
    overlong_dropped: int


def load_corpus(files: tuple[DataFile, ...], config: TrainingConfig, world: World, excluded: Exclusions = ()) -> Corpus:
    """Return the corpus of ``files``, measured by all ranks together; the result is the same on each.

    Rows that are ``excluded`` count as if they had not been accepted.
    UserError when a digest differs, when ``overlong`` is refuse and a row is too long, or when no row is left.
    """
    corpus = assemble_corpus(files, measure_files(files, config, world, excluded), config)
    require_rows(corpus, config)
    return corpus


def measure_files(
    files: Sequence[DataFile], config: TrainingConfig, world: World, excluded: Exclusions = ()
) -> list["FileMeasures"]:
    """Return what `assemble_corpus` needs to know of each file, on every rank.

    UserError when a digest differs, or when the objective asks for candidates and a row has another number than its
    tokens want.
    """
    with world.agreement():
        needed = _TOPK_COLUMNS if config.objective.kl_weight else []
        mine = [(i, _measure_file(files[i], needed, excluded)) for i in range(world.rank, len(files), world.size)]
    measured = dict(pair for pairs in world.gather(mine) for pair in pairs)
    return [measured[i] for i in range(len(files))]


def assemble_corpus(files: Sequence[DataFile], parts: Sequence["FileMeasures"], config: TrainingConfig) -> Corpus:
    """Return the corpus of measured files, which may have no row to train on; UserError as `load_corpus`."""
    groups, first_row = [], 0
    for file, part in zip(files, parts, strict=True):
        for index, num_rows in enumerate(part.group_rows):
            groups.append(RowGroup(file.path, index, num_rows, first_row))
            first_row += num_rows
    lengths = np.concatenate([part.lengths for part in parts]) if parts else np.zeros(0, np.int32)
    loss_lengths = np.concatenate([part.loss_lengths for part in parts]) if parts else np.zeros(0, np.int32)
    hashes = np.concatenate([part.hashes for part in parts]) if parts else np.zeros(0, np.uint32)

    is_usable = loss_lengths > 0
    is_overlong = is_usable & (lengths > config.sequence_length)
    overlong = int(is_overlong.sum())
    if overlong and config.overlong == "refuse":
        raise UserError(
            f"{overlong} rows are longer than training.sequence_length ({config.sequence_length} tokens; the longest "
            f"has {int(lengths.max())}); raise it, or set training.overlong=drop"
        )
    is_usable &= ~is_overlong
    is_evaluation = is_usable & (hashes < config.evaluation_fraction * 2**32)
    return Corpus(tuple(groups), lengths, loss_lengths, is_usable & ~is_evaluation, is_evaluation, overlong)


def require_rows(corpus: Corpus, config: TrainingConfig) -> None:
    """Raise UserError when no row is left to train on."""
    if not corpus.is_training.any():
        raise UserError(
            f"no row to train on: of {len(corpus.lengths)} rows {int((corpus.loss_lengths > 0).sum())} are accepted "
            f"and have tokens, {corpus.overlong_dropped} of them are longer than training.sequence_length "
            f"({config.sequence_length}), {int(corpus.is_evaluation.sum())} are held back for evaluation"
        )


@dataclass(frozen=True, slots=True)
class FileMeasures:
    """Of one file: rows of each row group, and of each row its tokens, loss tokens and hash of the prompt's id."""

    group_rows: list[int]
    lengths: Int32s
    loss_lengths: Int32s
    hashes: npt.NDArray[np.uint32]


def _measure_file(file: DataFile, needed: list[str], excluded: Exclusions) -> FileMeasures:
    check_file(file)
    fs, path = open_filesystem(file.path)
    lengths, loss_lengths, hashes = [], [], []
    with fs.open(path, "rb") as handle:
        parquet = pq.ParquetFile(handle)
        if not set(needed) <= set(parquet.schema_arrow.names):
            raise UserError(
                f"training.objective.kl_weight needs the teacher's log-probabilities, and {file.path!r} has none; set "
                "it to 0, or generate the rows with sampling.top_logprobs"
            )
        lineage = exclusion_columns(excluded, parquet.schema_arrow.names)
        columns = ["prompt_id", "status", *_TOKEN_COLUMNS, *lineage, *needed]
        for batch in parquet.iter_batches(_TOPK_BATCH_ROWS if needed else _BATCH_ROWS, columns=columns):
            prompt, completion = (_list_lengths(batch.column(name)) for name in _TOKEN_COLUMNS)
            is_accepted = pc.equal(batch.column("status"), str(RowStatus.ACCEPTED)).to_numpy(zero_copy_only=False)
            # Nothing predicts the first token of a row, so without a prompt it bears no loss.
            is_learnt = is_accepted & ~find_excluded(batch, excluded)
            if needed:
                _check_candidates(batch.filter(pa.array(is_learnt)), file)
            loss = np.where(is_learnt, completion - (prompt == 0), 0)
            lengths.append(prompt + completion)
            loss_lengths.append(np.maximum(loss, 0).astype(np.int32))
            # The same prompt is always on the same side, in every run: no sample of it leaks into the evaluation.
            ids = batch.column("prompt_id").to_pylist()
            hashes.append(np.fromiter((zlib.crc32(i.encode()) for i in ids), np.uint32, len(ids)))
        group_rows = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
    if sum(group_rows) != file.num_rows:
        raise UserError(f"the data file {file.path!r} has {sum(group_rows)} rows, expected {file.num_rows}")
    empty = np.zeros(0, np.int32)
    return FileMeasures(
        group_rows,
        np.concatenate(lengths or [empty]),
        np.concatenate(loss_lengths or [empty]),
        np.concatenate(hashes or [np.zeros(0, np.uint32)]),
    )


def _check_candidates(batch: pa.RecordBatch, file: DataFile) -> None:
    """Raise UserError when a row's candidates are not as many for each of its tokens; a row may have none at all."""
    tokens, ids, logprobs = (_list_lengths(batch.column(n)) for n in ("completion_token_ids", *_TOPK_COLUMNS))
    wrong = np.flatnonzero((ids != logprobs) | (ids % np.maximum(tokens, 1) != 0))
    if len(wrong):
        row = int(wrong[0])
        raise UserError(
            f"the row of prompt {batch.column('prompt_id')[row]} in {file.path!r} has {ids[row]} ids and "
            f"{logprobs[row]} log-probabilities of the teacher's candidates for its {tokens[row]} tokens, and "
            "training.objective.kl_weight needs as many of both for each token; generate the rows again with "
            "sampling.top_logprobs, or set it to 0"
        )


def _list_lengths(column: pa.Array) -> Int32s:
    lengths: Int32s = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int32)
    return lengths


def check_file(file: DataFile) -> None:
    """Raise UserError when a data file is missing or its bytes are not those of its digest."""
    fs, path = open_filesystem(file.path)
    if not fs.exists(path):
        raise UserError(f"the data file {file.path!r} does not exist")
    if file.sha256 is not None and (found := sha256_of(file.path)) != file.sha256:
        raise UserError(f"the data file {file.path!r} has changed: sha256 {found}, expected {file.sha256}")


def sha256_of(uri: str) -> str:
    """Return the hex digest of a file's bytes."""
    fs, path = open_filesystem(uri)
    digest = hashlib.sha256()
    with fs.open(path, "rb") as handle:
        while chunk := handle.read(_READ_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Row:
    """The tokens of one row; the loss is on ``completion``.

    ``topk_ids`` and ``topk_logprobs`` are the teacher's candidates, as many for each token of the completion, where
    they were asked for and the row has them.
    """

    prompt: Int32s
    completion: Int32s
    topk_ids: Int32s | None = None
    topk_logprobs: Float32s | None = None


class RowReader:
    """Reads rows of a corpus by their numbers; holds the row groups of the latest call and no others.

    Neighbouring windows share row groups, and a file with one huge row group is read once for all its windows.
    """

    def __init__(self, corpus: Corpus, with_topk: bool = False) -> None:
        self._groups = corpus.groups
        self._firsts = np.array([group.first_row for group in corpus.groups])
        self._tables: dict[int, pa.Table] = {}
        self._columns = _TOKEN_COLUMNS + (_TOPK_COLUMNS if with_topk else [])

    def fetch(self, rows: Int64s) -> dict[int, Row]:
        """Return the rows with the given corpus numbers."""
        wanted = np.sort(rows)
        owner = np.searchsorted(self._firsts, wanted, side="right") - 1
        numbers = np.unique(owner).tolist()
        self._tables = {n: self._tables[n] for n in numbers if n in self._tables}
        found: dict[int, Row] = {}
        for number in numbers:
            if number not in self._tables:
                self._tables[number] = _read_group(self._groups[number], self._columns)
            mine = wanted[owner == number]
            table = self._tables[number].take(pa.array(mine - self._firsts[number])).combine_chunks()
            columns = [_split_lists(table.column(name)) for name in self._columns]
            found.update(zip(mine.tolist(), map(Row, *columns), strict=True))
        return found


def _read_group(group: RowGroup, columns: list[str]) -> pa.Table:
    fs, path = open_filesystem(group.path)
    with fs.open(path, "rb") as handle:
        return pq.ParquetFile(handle).read_row_group(group.index, columns=columns)


def _split_lists(column: pa.ChunkedArray) -> list[npt.NDArray[Any]]:
    """Return each list as an array; a null is an empty one."""
    lists = column.chunk(0)
    values = lists.flatten().to_numpy()
    ends = np.cumsum(_list_lengths(lists))
    return np.split(values, ends[:-1])
