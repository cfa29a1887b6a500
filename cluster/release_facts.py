"""What everything that is written beside a released student is filled from, and the licence that it comes under."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cluster.terms_sources import DATA_PREFIX
from configs.errors import UserError
from configs.repository import is_repository
from configs.schema import RunConfig
from configs.terms.decision import KINDS
from configs.terms.policy import Entry, Kind, OutputRule, Policy
from configs.terms.records import Decision, Role, Source

NOT_CHOSEN, UNKNOWN = "not-chosen", "unknown"
# Statements of the party or of the run, which are no licence to anybody else.
NO_LICENSE = ("own", "stillhouse-home-made", "stillhouse-addition")
RESTRICTED = (OutputRule.NONCOMMERCIAL_ONLY, OutputRule.RESEARCH_ONLY)


@dataclass(frozen=True, slots=True)
class HubLicense:
    """A licence as Hugging Face cards and BOMs name it; ``spdx`` is None where there is none to name."""

    license: str
    license_name: str | None = None
    license_link: str | None = None
    spdx: str | None = None


@dataclass(frozen=True, slots=True)
class ReleaseFacts:
    """One finished run as cards and BOMs tell it."""

    name: str
    version: str
    """Fingerprint of the training job."""
    program: str
    config: RunConfig
    decision: Decision
    manifest: dict[str, Any]
    report: dict[str, Any]
    """What `cluster.report.build_report` returns, with its ``cost``."""
    student_license: HubLicense
    data_license: HubLicense
    created: datetime


def derive_student_license(decision: Decision, chosen: str | None, policy: Policy) -> HubLicense:
    """The licence of the student: what binds its weights, or what its maker chose where nothing does.

    Bound it is by the licences of the weights that it was made from and of teachers that count it as a derivative or
    limit what it may be used for. A permissive base leaves the choice open.

    Raises:
        UserError: the chosen one is not known, or is not for the maker to choose.
    """
    bound, is_open = _binding(decision, policy, (Role.STUDENT,))
    if chosen is None:
        return _name(bound)
    entries = policy.named(Kind.MODEL, chosen)
    if not entries:
        raise UserError(
            f"terms.student_license ({chosen}) is not in the policy; `stillhouse terms list` has what is, "
            "docs/terms.md how to add an entry"
        )
    if not is_open and entries[0] not in bound:
        named = ", ".join(each.name if each else UNKNOWN for each in bound)
        raise UserError(
            f"terms.student_license ({chosen}) is not for you to choose: the student is bound by {named}; leave it out"
        )
    return _name([entries[0]])


def derive_data_license(decision: Decision, policy: Policy) -> HubLicense:
    """The licence of prompts and completions together: the prompts', and what teachers ask of users of outputs."""
    return _name(_binding(decision, policy, (Role.PROMPTS,))[0])


def public_name(source: Source) -> str:
    """A source's name for others to read: of a directory or file of this machine its last part alone."""
    if source.name.startswith(DATA_PREFIX):
        return source.name.removeprefix(DATA_PREFIX)
    return source.name if is_repository(source.name) else source.name.rstrip("/").rsplit("/", 1)[-1]


def known_entries(source: Source, policy: Policy) -> list[Entry | None]:
    """The entries of the policy that a source's statements name; one that is None where they name none."""
    named = dict.fromkeys(each.entry for each in source.statements if each.entry is not None)
    return [policy.get(KINDS[source.role], each) for each in named] or [None]


def _binding(decision: Decision, policy: Policy, roles: tuple[Role, ...]) -> tuple[list[Entry | None], bool]:
    """Entries that bind what comes of sources in ``roles`` and of what teaches; and whether they leave a choice."""
    bound: list[Entry | None] = []
    is_open = True
    for source in decision.sources:
        for entry in known_entries(source, policy):
            if entry is not None and entry.id in NO_LICENSE:
                continue
            is_own = source.role in roles
            if not is_own and (source.role in (Role.PROMPTS, Role.STUDENT) or not _reaches(entry, roles)):
                continue
            bound += [] if entry in bound else [entry]
            is_open = is_open and is_own and entry is not None and entry.student_is_derivative == "no"
    return sorted(bound, key=lambda each: each.id if each else ""), is_open


def _reaches(entry: Entry | None, roles: tuple[Role, ...]) -> bool:
    """Whether a teacher's licence reaches what comes of it; one that nobody knows does."""
    if entry is None or entry.student_is_derivative == "yes" or entry.outputs_for_training in RESTRICTED:
        return True
    return Role.PROMPTS in roles and any("outputs" in each.applies_to for each in entry.obligations)


def _name(entries: list[Entry | None]) -> HubLicense:
    match entries:
        case []:
            return HubLicense("other", NOT_CHOSEN, "NOTICE")
        case [Entry() as entry] if entry.hf is not None and entry.hf.license != "other":
            return HubLicense(entry.hf.license, spdx=_spdx(entry))
        case [Entry() as entry]:
            name = entry.hf.license_name if entry.hf and entry.hf.license_name else entry.id
            return HubLicense("other", name, entry.url or "NOTICE", _spdx(entry))
    known = [each for each in entries if each is not None]
    name = "-and-".join(each.id if each else UNKNOWN for each in entries)
    expression = " AND ".join(_spdx(each) for each in known) if len(known) == len(entries) else None
    return HubLicense("other", name, "NOTICE", expression)


def _spdx(entry: Entry) -> str:
    return entry.spdx or f"LicenseRef-stillhouse-{entry.id}"
