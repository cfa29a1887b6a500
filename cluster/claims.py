"""Whose model a teacher may call itself, and what a run's rows claim to be, in words."""

from collections.abc import Iterable
from functools import cache
from typing import Any

from configs.claims import load_claims
from configs.repository import public_address
from configs.terms.records import Role, Source
from services.claim_count import OwnMakers


def own_makers(teacher: str, sources: Iterable[Source]) -> frozenset[str]:
    """Makers whose model a teacher may call itself: by its own name, and by those of the models it was made from."""
    teachers = [each for each in sources if each.role is Role.TEACHER]
    names, before = {public_address(teacher)}, set[str]()
    while names != before:
        before = set(names)
        names |= {each.name for each in teachers if each.via and each.via in before}
    return load_claims().makers_of(*names)


def own_makers_by_row(sources: tuple[Source, ...]) -> OwnMakers:
    """The same from a row's ``teacher_repo``; a row that names no teacher may be any of the sources'."""
    unnamed = load_claims().makers_of(*(each.name for each in sources if each.role is Role.TEACHER))

    @cache
    def find(teacher: str | None) -> frozenset[str]:
        return unnamed if teacher is None else own_makers(teacher, sources)

    return find


def claim_words(claims: dict[str, Any] | None) -> str | None:
    """What the accepted rows of a manifest's ``claims`` say they are, in a sentence; None where nobody looked."""
    if claims is None:
        return None
    others = [each for each in claims["makers"] if each["accepted"] and not each["own"]]
    own = sum(each["accepted"] for each in claims["makers"] if each["own"])
    names = f"; {own:,} accepted {_rows(own)} the teacher's own name" if own else ""
    if not others:
        return f"no accepted row says that it is another maker's model{names}"
    total = sum(each["accepted"] for each in others)
    told = ", ".join(f"{load_claims().name_of(each['maker'])} {each['accepted']:,}" for each in others)
    example = others[0]["examples"][0]
    return f"{total:,} accepted {_rows(total)} to be another maker's model ({told}), such as `{example}`{names}"


def _rows(number: int) -> str:
    return "row claims" if number == 1 else "rows claim"
