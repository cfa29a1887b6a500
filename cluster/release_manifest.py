"""``MANIFEST.json`` of a released student, and the check of a directory against it: what differs, and where.

Besides the digest of each file there are short ones of its parts, so that a difference is told to within a part, and
two sums of a part's bytes, from which follows the very byte where it alone was changed: the bytes, and each times its
place. Put back, it must give the part's digest, so what is told is certain.
"""

import hashlib
import json
import math
import posixpath
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np

from configs.errors import UserError

NAME = "MANIFEST.json"
SIGNATURE = f"{NAME}.sig"  # of the manifest, so it is not in it
SCHEMA = 2
FINEST, COARSEST = 256, 2**20  # bytes of a part
PARTS = 256  # of a file, at most, until parts are the coarsest
PART_DIGITS = 16  # hex digits: parts only locate what the whole digest has found


def write_manifest(directory: Path, about: dict[str, Any], described: dict[str, dict[str, Any]]) -> str:
    """Write `NAME` over all other files of the directory and return its SHA-256.

    ``about`` is what it says beside, ``described`` the files that `describe_file` has read already.
    """
    paths = [path for path in list_files(str(directory)) if path != NAME]
    files = [{"path": path, **(described.get(path) or describe_file(str(directory / path)))} for path in paths]
    text = json.dumps({"schema": SCHEMA, **about, "files": files}, indent=1, sort_keys=True) + "\n"
    (directory / NAME).write_text(text, encoding="utf-8")
    return hashlib.sha256(text.encode()).hexdigest()


def find_fault(directory: str) -> str | None:
    """Say what is wrong with a released student's or a run's directory, the first thing by name; None if nothing is.

    Of a run directory its sealed data is checked, and its exported student.

    Raises:
        UserError: there is no manifest in it.
    """
    try:
        return _find_fault(directory)
    except (KeyError, TypeError) as error:
        return f"the manifest is not one that this program has written: {error}"


def _find_fault(directory: str) -> str | None:
    manifest = _read(directory, NAME)
    if manifest is not None:
        return _release_fault(directory, manifest)
    sealed = _read(directory, "manifest.json")
    if sealed is None:
        raise UserError(
            f"{directory} has no {NAME}, so there is nothing to check it against; give the directory of an exported "
            "student (<run>/student/hf) or of a run"
        )
    fault = _data_fault(directory, sealed)
    student = posixpath.join(directory.rstrip("/"), "student", "hf")
    exported = _read(student, NAME)
    return fault if fault or exported is None else _release_fault(student, exported)


def manifest_digest(directory: str) -> str | None:
    """SHA-256 of a released student's manifest, to compare with the one that its maker names."""
    filesystem, path = fsspec.url_to_fs(posixpath.join(directory.rstrip("/"), NAME))
    return hashlib.sha256(filesystem.cat_file(path)).hexdigest() if filesystem.exists(path) else None


def list_files(directory: str) -> list[str]:
    """Relative paths of all files below a directory, sorted."""
    filesystem, path = fsspec.url_to_fs(directory)
    root = path.rstrip("/") + "/"
    return sorted(each.removeprefix(root) for each in filesystem.find(path))


def part_bytes(size: int) -> int:
    """How long the parts of a file are (bytes): a power of two that makes at most `PARTS` of it, within limits.

    >>> part_bytes(10), part_bytes(100_000), part_bytes(5 * 10**9)
    (256, 512, 1048576)
    """
    wanted = max(1, math.ceil(size / PARTS))
    return min(COARSEST, max(FINEST, 1 << (wanted - 1).bit_length()))


def _release_fault(directory: str, manifest: dict[str, Any]) -> str | None:
    if manifest.get("schema") != SCHEMA:
        return f"{NAME} is of schema {manifest.get('schema')!r}, and this program reads {SCHEMA}"
    recorded = {each["path"]: each for each in manifest["files"]}
    found = set(list_files(directory)) - {NAME, SIGNATURE}
    if missing := sorted(recorded.keys() - found):
        return f"{missing[0]} is missing{_more(missing)}"
    for path, each in sorted(recorded.items()):
        if difference := _difference(posixpath.join(directory.rstrip("/"), path), path, each):
            return difference
    if added := sorted(found - recorded.keys()):
        return f"{added[0]} was added after the release{_more(added)}"
    terms = _read(directory, "terms.json") or {}
    if terms.get("policy_digest") != manifest["policy"]["sha256"]:
        return f"terms.json was decided by another policy than {NAME} names"
    return None


def _data_fault(directory: str, sealed: dict[str, Any]) -> str | None:
    for file in sealed["files"]:
        path = f"completions/{file['path']}"
        filesystem, full = fsspec.url_to_fs(posixpath.join(directory.rstrip("/"), path))
        if not filesystem.exists(full):
            return f"{path} is missing"
        with filesystem.open(full, "rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        if digest != file["sha256"]:
            return f"{path} is not the shard that was sealed: sha256 {digest}, not {file['sha256']}"
    return None


def _difference(full: str, path: str, recorded: dict[str, Any]) -> str | None:
    found = describe_file(full, recorded["part_bytes"])
    if found["sha256"] == recorded["sha256"]:
        return None
    parts = zip(found["parts"], recorded["parts"], strict=False)  # of another length there are fewer or more
    number = next((place for place, (one, other) in enumerate(parts) if one != other), None)
    if number is None:
        return f"{path} has {found['bytes']:,} bytes and not {recorded['bytes']:,}"
    start = number * recorded["part_bytes"]
    if (byte := _changed_byte(full, number, found, recorded)) is not None:
        place, is_byte, was_byte = byte
        return (
            f"{path} differs, first at byte {start + place:,} of {recorded['bytes']:,}: {is_byte}, and was {was_byte}"
        )
    end = min(start + recorded["part_bytes"], recorded["bytes"]) - 1
    length = "" if found["bytes"] == recorded["bytes"] else f"; it has {found['bytes']:,} bytes"
    return f"{path} differs, first in bytes {start:,} to {end:,} of {recorded['bytes']:,}{length}"


def _changed_byte(
    full: str, number: int, found: dict[str, Any], recorded: dict[str, Any]
) -> tuple[int, int, int] | None:
    """The byte of a part that alone was changed: its place in the part, what it is and was; None if it is not alone."""
    change = found["sums"][number] - recorded["sums"][number]
    moved = found["place_sums"][number] - recorded["place_sums"][number]
    if change == 0 or moved % change:
        return None
    filesystem, path = fsspec.url_to_fs(full)
    start = number * recorded["part_bytes"]
    part = bytearray(filesystem.cat_file(path, start=start, end=start + recorded["part_bytes"]))
    place = moved // change
    if not 0 <= place < len(part) or not 0 <= part[place] - change <= 255:
        return None
    now = part[place]
    part[place] -= change
    return (place, now, part[place]) if _short_digest(part) == recorded["parts"][number] else None


def describe_file(full: str, length: int | None = None) -> dict[str, Any]:
    """Size, SHA-256, and of the parts of a file, ``length`` bytes each, short digests and sums; unset: `part_bytes`."""
    filesystem, path = fsspec.url_to_fs(full)
    size = filesystem.size(path)
    length = length or part_bytes(size)
    whole = hashlib.sha256()
    places = np.arange(length, dtype=np.uint64)
    parts, sums, place_sums = [], [], []
    for part in _read_parts(filesystem, path, length):
        whole.update(part)
        parts.append(_short_digest(part))
        values = np.frombuffer(part, np.uint8)
        sums.append(int(values.sum(dtype=np.uint64)))
        place_sums.append(int(values @ places[: len(values)]))
    digests = {"bytes": size, "sha256": whole.hexdigest(), "part_bytes": length}
    return {**digests, "parts": parts, "sums": sums, "place_sums": place_sums}


def _short_digest(part: bytes | bytearray) -> str:
    return hashlib.sha256(part).hexdigest()[:PART_DIGITS]


def _read_parts(filesystem: fsspec.AbstractFileSystem, path: str, length: int) -> Iterator[bytes]:
    with filesystem.open(path, "rb") as file:
        while part := file.read(length):
            yield part


def _read(directory: str, name: str) -> dict[str, Any] | None:
    filesystem, path = fsspec.url_to_fs(posixpath.join(directory.rstrip("/"), name))
    try:
        content: dict[str, Any] = json.loads(filesystem.cat_file(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        raise UserError(f"{name} in {directory} is not JSON, so nothing can be checked against it") from None
    return content


def _more(names: list[str]) -> str:
    return f", and {len(names) - 1} more" if len(names) > 1 else ""
