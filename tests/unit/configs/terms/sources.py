"""Sources and parties as a recipe would come to them, for tests of the decision."""

from datetime import date
from typing import Any

from configs.terms.decision import evaluate
from configs.terms.policy import load_policy
from configs.terms.recipe import Party, Waiver
from configs.terms.records import Decision, Role, Source, Statement

TODAY = date(2026, 11, 24)


def source(entry: str | None, role: Role = Role.TEACHER, **fields: Any) -> Source:
    """A source with one statement, or without any."""
    statements = () if entry is None else (Statement(text=entry, origin="test", entry=entry),)
    return Source(**{"role": role, "name": f"{role}/{entry}", "statements": statements, **fields})


def decide(*sources: Source, waivers: tuple[Waiver, ...] = (), **party: Any) -> Decision:
    return evaluate(sources, Party(**party), waivers, load_policy(), TODAY)


def waiver(of: Source, license: str, expires: date = date(2026, 12, 31)) -> Waiver:
    return Waiver(source=of.name, license=license, document_sha256="a" * 64, approver="Counsel", expires=expires)
