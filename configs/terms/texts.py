"""The texts beside a model that its licence is read from, by their digests."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

LICENSE_FILES = ("LICENSE*", "LICENCE*", "License*", "license*")
CARD = "README.md"


def license_texts(directory: Path) -> dict[Path, str]:
    """Licence texts in a model's directory with their SHA-256."""
    paths = {path for pattern in LICENSE_FILES for path in directory.glob(pattern) if path.is_file()}
    return {path: _digest(path) for path in sorted(paths)}


def decided_texts(directory: Path) -> dict[str, str]:
    """What a decision on the directory rests on, by name: its licence texts, or its card where it has none."""
    return {path.name: digest for path, digest in license_texts(directory).items()} or digests(directory, [CARD])


def digests(directory: Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 of those of the files that are there, by name."""
    return {name: _digest(directory / name) for name in names if (directory / name).is_file()}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
