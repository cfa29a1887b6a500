"""Rows that a job may not learn from: those that have all the values of one of its exclusions.

An exclusion is a set of columns with their values, such as the lineage of a teacher that is no longer allowed. Files
without one of its columns, as a job derives them, hold no such row.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

Exclusions = tuple[dict[str, str | None], ...]


def exclusion_columns(excluded: Exclusions, present: Iterable[str]) -> list[str]:
    """Return those columns of a file that tell which of its rows are excluded."""
    return sorted({name for each in excluded for name in each} & set(present))


def find_excluded(batch: pa.RecordBatch | pa.Table, excluded: Exclusions) -> npt.NDArray[np.bool_]:
    """Return for each row of ``batch``, which has the columns of `exclusion_columns`, whether it is excluded."""
    is_excluded = np.zeros(batch.num_rows, np.bool_)
    for each in excluded:
        if set(each) <= set(batch.schema.names):
            is_excluded |= np.logical_and.reduce([_has(batch.column(name), value) for name, value in each.items()])
    return is_excluded


def iterate_kept(
    file: pq.ParquetFile, columns: list[str], excluded: Exclusions, batch_size: int
) -> Iterator[pa.RecordBatch]:
    """Yield the wanted ``columns`` of a file's rows that are not excluded, at most ``batch_size`` at a time."""
    lineage = exclusion_columns(excluded, file.schema_arrow.names)
    for batch in file.iter_batches(batch_size=batch_size, columns=[*columns, *lineage]):
        yield batch.filter(pa.array(~find_excluded(batch, excluded))).select(columns)


def _has(column: pa.Array | pa.ChunkedArray, value: str | None) -> npt.NDArray[np.bool_]:
    found = pc.is_null(column) if value is None else pc.fill_null(pc.equal(column, value), False)
    return np.asarray(found, np.bool_)
