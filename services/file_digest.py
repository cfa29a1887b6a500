"""Digests of a file that tell whether it differs, and where: of the whole, and of its parts.

Besides the digest of the whole there are short ones of its parts, so that a difference is told to within a part, and
two sums of a part's bytes, from which follows the very byte where it alone was changed: the bytes, and each times its
place.
"""

import hashlib
import math
import os
from typing import IO, Any

import fsspec
import numpy as np

FINEST, COARSEST = 256, 2**20  # bytes of a part
PARTS = 256  # of a file, at most, until parts are the coarsest
PART_DIGITS = 16  # hex digits: parts only locate what the whole digest has found
ROW = 1024  # bytes that are summed side by side
LISTS = ("parts", "sums", "place_sums")


def part_bytes(size: int, parts: int = PARTS) -> int:
    """How long the parts of a file are (bytes): a power of two that makes at most ``parts`` of it, within limits.

    >>> part_bytes(10), part_bytes(100_000), part_bytes(100_000, 16), part_bytes(5 * 10**9)
    (256, 512, 8192, 1048576)
    """
    return min(COARSEST, max(FINEST, _power_of_two(size, parts)))


def few_part_bytes(size: int) -> int:
    """The same for one of very many files: 16 parts of it, more while a part is shorter than 1 MiB, never over `PARTS`.

    >>> few_part_bytes(100_000), few_part_bytes(5 * 10**9)
    (8192, 33554432)
    """
    return max(part_bytes(size, 16), _power_of_two(size, PARTS))


def describe_file(uri: str, length: int | None = None) -> dict[str, Any]:
    """What `describe` says of the file at a path or address; ``length`` unset: `part_bytes`."""
    with fsspec.open(uri, "rb") as file:
        return describe(file, length or part_bytes(_size(file)))


def describe_one_of_many(file: IO[bytes]) -> dict[str, Any]:
    """What `describe` says of an open file, in `few_part_bytes`."""
    return describe(file, few_part_bytes(_size(file)))


def describe(file: IO[bytes], length: int) -> dict[str, Any]:
    """Size, SHA-256, and of an open file's parts of ``length`` bytes each short digests and sums; reads it once."""
    file.seek(0)
    size, whole = 0, hashlib.sha256()
    parts, sums, place_sums = [], [], []
    while part := file.read(length):
        size += len(part)
        whole.update(part)
        parts.append(short_digest(part))
        total, by_place = _sums(part)
        sums.append(total)
        place_sums.append(by_place)
    digests = {"bytes": size, "sha256": whole.hexdigest(), "part_bytes": length}
    return {**digests, "parts": parts, "sums": sums, "place_sums": place_sums}


def to_words(digests: dict[str, Any]) -> dict[str, Any]:
    """Lists as words of a line, for a manifest of many files: JSON has a line for each element of a list."""
    return digests | {key: " ".join(map(str, digests[key])) for key in LISTS}


def from_words(recorded: dict[str, Any]) -> dict[str, Any]:
    """What `to_words` was given, with whatever else was recorded beside it."""
    parts, *sums = (recorded[key].split() for key in LISTS)
    return recorded | dict(zip(LISTS, (parts, *([int(each) for each in words] for words in sums)), strict=True))


def short_digest(part: bytes | bytearray) -> str:
    """The digest of a part."""
    return hashlib.sha256(part).hexdigest()[:PART_DIGITS]


def _sums(part: bytes) -> tuple[int, int]:
    """The sum of the bytes, and of each times its place: from sums of rows and columns, which is quick."""
    rows = np.zeros((-(-len(part) // ROW), ROW), np.uint8)
    rows.reshape(-1)[: len(part)] = np.frombuffer(part, np.uint8)
    by_row, by_column = (rows.sum(axis=axis, dtype=np.uint32).astype(np.uint64) for axis in (1, 0))
    in_rows = by_column @ np.arange(ROW, dtype=np.uint64)
    return int(by_row.sum()), int(ROW * (by_row @ np.arange(len(by_row), dtype=np.uint64)) + in_rows)


def _size(file: IO[bytes]) -> int:
    file.seek(0, os.SEEK_END)
    return file.tell()


def _power_of_two(size: int, parts: int) -> int:
    return 1 << (max(1, math.ceil(size / parts)) - 1).bit_length()
