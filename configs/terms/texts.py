"""The texts beside a model that its licence is read from, what they say, and their digests."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from configs.terms.naming import Card, name_license, read_card
from configs.terms.policy import Kind, Policy
from configs.terms.records import Statement

LICENSE_FILES = ("LICENSE*", "LICENCE*", "License*", "license*")
CARD = "README.md"


@dataclass(frozen=True, slots=True)
class Told:
    """What the texts beside a model say of its licence, and of the models it was made from."""

    statements: tuple[Statement, ...] = ()
    base_models: tuple[str, ...] = ()


def read_texts(directory: Path, kind: Kind, policy: Policy) -> Told:
    """What the card says, and the titles of the licence texts."""
    path = directory / CARD
    card = read_card(path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else Card()
    return Told((*_of_card(card, kind, policy), *_of_titles(directory, kind, policy)), card.base_models)


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


def _of_card(card: Card, kind: Kind, policy: Policy) -> Iterator[Statement]:
    for text in card.licenses:
        yield from name_license(text, f"its {CARD}", kind, policy)
    if card.problem is not None:
        yield Statement(text=CARD, origin=f"its {CARD}", problem=f"its {CARD} cannot be read: {card.problem}")


def _of_titles(directory: Path, kind: Kind, policy: Policy) -> Iterator[Statement]:
    for path, digest in license_texts(directory).items():
        for entry in policy.of_text(kind, path.read_text(encoding="utf-8", errors="replace")):
            yield Statement(text=f"{path.name} {digest}", origin="the title of its licence text", entry=entry.id)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
