"""Which of the sealed rows a student may learn from today, by what the rows themselves say of where they came from.

Rows of one lineage are decided on together: with the sources that it names, their bases, and what all rows share. What
is refused is left out, and nothing else; where all is refused, the decision says why.
"""

from dataclasses import dataclass
from datetime import date
from typing import Any

from cluster.terms_sources import find_sources, with_family
from configs.repository import public_address
from configs.schema import RunConfig
from configs.table import LICENSED_COLUMNS, LICENSES_JOINED
from configs.terms.decision import KINDS, evaluate
from configs.terms.policy import Policy
from configs.terms.records import Decision, Finding, Role, Source, Statement

Sources = tuple[Source, ...]


@dataclass(frozen=True, slots=True)
class Quarantined:
    """Rows of one lineage that are left out: how many of them were accepted, and the worst of what stands in the way.

    ``lineage`` are the values of `LICENSED_COLUMNS`.
    """

    lineage: dict[str, str | None]
    accepted: int
    finding: Finding


@dataclass(frozen=True, slots=True)
class Admission:
    """Today's decision over what is learnt from, and what is left out; nothing is where all would be."""

    decision: Decision
    quarantined: tuple[Quarantined, ...] = ()

    @property
    def excluded(self) -> tuple[dict[str, str | None], ...]:
        """What a training job leaves out."""
        return tuple(each.lineage for each in self.quarantined)


def admit(config: RunConfig, manifest: dict[str, Any] | None, recorded: Sources, policy: Policy) -> Admission:
    """Decide by today's policy and recipe over the rows of a manifest and the ``recorded`` sources of its data."""
    known = (*find_sources(config, policy), *recorded)
    groups = (manifest or {}).get("lineage") or [{}]
    decisions = [_evaluate(config, _sources_of(group, known, policy), policy) for group in groups]
    pairs = list(zip(groups, decisions, strict=True))
    admitted = [decision for decision in decisions if not decision.refusals]
    if not admitted:
        everything = {source for decision in decisions for source in decision.sources}
        return Admission(_evaluate(config, tuple(everything), policy))
    learnt = tuple({source for decision in admitted for source in decision.sources})
    quarantined = tuple(_quarantine(group, decision) for group, decision in pairs if decision.refusals)
    return Admission(_evaluate(config, learnt, policy), quarantined)


def _quarantine(group: dict[str, Any], decision: Decision) -> Quarantined:
    return Quarantined({name: group.get(name) for name in LICENSED_COLUMNS}, group["accepted"], decision.refusals[0])


def _evaluate(config: RunConfig, sources: Sources, policy: Policy) -> Decision:
    party = with_family(config.terms.party, sources, policy)
    return evaluate(sources, party, config.terms.waivers, policy, date.today())


def _sources_of(group: dict[str, Any], known: Sources, policy: Policy) -> Sources:
    """What the rows of one lineage are made from; rows that name no teacher may be any teacher's."""
    teacher = group.get("teacher_repo")
    shared = [each for each in known if each.role is not Role.TEACHER]
    teachers = [each for each in known if each.role is Role.TEACHER]
    if teacher is not None:
        teachers = _with_bases(teacher, teachers)
    named = [
        (Role.TEACHER, teacher, group.get("teacher_license")),
        (Role.PROMPTS, group.get("prompt_source"), group.get("prompt_license")),
        *((Role.SERVICE, _provider(each, policy), each) for each in _split(group.get("terms_id"))),
    ]
    of_rows = [_of_row(role, name, licenses, known) for role, name, licenses in named if name is not None]
    return (*shared, *teachers, *(each for each in of_rows if each is not None))


def _with_bases(teacher: str, teachers: list[Source]) -> list[Source]:
    names, before = {public_address(teacher)}, set[str]()
    while names != before:
        before = set(names)
        names |= {each.name for each in teachers if each.via is not None and each.via in before}
    return [each for each in teachers if each.name in names and (each.via is None or each.via in names)]


def _of_row(role: Role, name: str, licenses: str | None, known: Sources) -> Source | None:
    """The source as its rows have it, where neither the recipe nor the manifest says as much of it."""
    same = [each for each in known if each.role is role and each.name == public_address(name)]
    missing = set(_split(licenses)) - {said.entry for each in same for said in each.statements}
    if same and not missing:
        return None
    statements = tuple(Statement(text=each, origin="the rows", entry=each) for each in sorted(missing))
    like = same[0] if same else Source(role=role, name=name)
    return like.model_copy(update={"statements": statements, "via": None})


def _provider(terms_id: str, policy: Policy) -> str:
    entry = policy.get(KINDS[Role.SERVICE], terms_id)
    return (entry.provider if entry else None) or terms_id


def _split(licenses: str | None) -> list[str]:
    return licenses.split(LICENSES_JOINED) if licenses else []
