"""The texts beside a model that its licence is read from, by their digests."""

import hashlib
from pathlib import Path

LICENSE_FILES = ("LICENSE*", "LICENCE*", "License*", "license*")
CARD = "README.md"


def license_texts(directory: Path) -> dict[Path, str]:
    """Licence texts in a model's directory with their SHA-256."""
    paths = {path for pattern in LICENSE_FILES for path in directory.glob(pattern) if path.is_file()}
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(paths)}


def decided_texts(directory: Path) -> dict[str, str]:
    """What a decision on the directory rests on, by name: its licence texts, or its card where it has none."""
    texts = {path.name: digest for path, digest in license_texts(directory).items()}
    card = directory / CARD
    if texts or not card.is_file():
        return texts
    return {CARD: hashlib.sha256(card.read_bytes()).hexdigest()}
