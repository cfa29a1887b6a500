"""``MANIFEST.json`` of a released student, and the check of a directory against it: what differs, and where.

A byte that follows from the sums of a part must, put back, give the part's digest, so what is told is certain.
"""

import hashlib
import json
import posixpath
from pathlib import Path
from typing import Any

import fsspec

from configs.errors import UserError
from services.file_digest import COARSEST, describe_file, from_words, short_digest

NAME = "MANIFEST.json"
SIGNATURE = f"{NAME}.sig"  # of the manifest, so it is not in it
SCHEMA = 2


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
    except (KeyError, TypeError, IndexError, ValueError) as error:
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
        place = posixpath.join(directory.rstrip("/"), path)
        filesystem, full = fsspec.url_to_fs(place)
        if not filesystem.exists(full):
            return f"{path} is missing"
        if "parts" in file:
            if difference := _difference(place, path, from_words(file)):
                return difference
            continue
        with filesystem.open(full, "rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        if digest != file["sha256"]:
            return f"{path} is not the shard that was sealed: sha256 {digest}, not {file['sha256']}"
    return None


def _difference(full: str, path: str, recorded: dict[str, Any]) -> str | None:
    found = describe_file(full, recorded["part_bytes"])
    if found["sha256"] == recorded["sha256"]:
        return None
    if found["bytes"] > recorded["bytes"] and _starts_as(full, recorded):
        size = f"{recorded['bytes']:,}"
        return f"{path} differs, first at byte {size} of {size}: it was appended to and has {found['bytes']:,} bytes"
    parts = zip(found["parts"], recorded["parts"], strict=False)  # of another length there are fewer or more
    number = next((place for place, (one, other) in enumerate(parts) if one != other), None)
    if number is None and found["bytes"] < recorded["bytes"]:  # it ends where a part does
        return f"{path} differs, first at byte {found['bytes']:,} of {recorded['bytes']:,}: it ends there"
    if number is None:
        return f"{path} has sha256 {found['sha256']} and not {recorded['sha256']}"
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
    return (place, now, part[place]) if short_digest(part) == recorded["parts"][number] else None


def _starts_as(full: str, recorded: dict[str, Any]) -> bool:
    """Whether a file's first bytes, as many as were recorded, are those that were."""
    whole, left = hashlib.sha256(), recorded["bytes"]
    with fsspec.open(full, "rb") as file:
        while left > 0 and (chunk := file.read(min(left, COARSEST))):
            whole.update(chunk)
            left -= len(chunk)
    return left == 0 and whole.hexdigest() == recorded["sha256"]


def _read(directory: str, name: str) -> dict[str, Any] | None:
    filesystem, path = fsspec.url_to_fs(posixpath.join(directory.rstrip("/"), name))
    try:
        content: dict[str, Any] = json.loads(filesystem.cat_file(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        raise UserError(f"{name} in {directory} is not JSON, so nothing can be checked against it") from None
    if not isinstance(content, dict):
        raise TypeError(f"{name} has no keys")
    return content


def _more(names: list[str]) -> str:
    return f", and {len(names) - 1} more" if len(names) > 1 else ""
