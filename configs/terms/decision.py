"""The decision: a pure function from sources, party, waivers and policy to what a run may do.

It is a meet. Every licence of every source counts, the strictest wins, so neither order nor repetition matters and a
further source never makes it milder. What is unknown is denied. A waiver is the only way down, and stays visible.
"""

from collections.abc import Iterable
from datetime import date

from configs.terms.policy import Entry, Kind, Policy
from configs.terms.recipe import Party, Waiver
from configs.terms.records import Decision, Duty, Finding, Role, Source, Verdict
from configs.terms.rules import findings_of, kinds_of_use

UNKNOWN = "unknown"

KINDS = {
    Role.TEACHER: Kind.MODEL,
    Role.JUDGE: Kind.MODEL,
    Role.STUDENT: Kind.MODEL,
    Role.PROMPTS: Kind.DATA,
    Role.SERVICE: Kind.SERVICE,
}


def evaluate(
    sources: Iterable[Source], party: Party, waivers: Iterable[Waiver], policy: Policy, today: date
) -> Decision:
    """Decide over all sources; ``today`` says which waivers have expired."""
    ordered = sorted(set(sources), key=lambda source: source.model_dump_json())
    valid = sorted((each for each in waivers if each.expires >= today), key=lambda each: each.model_dump_json())
    findings = {finding for source in ordered for finding in _findings(source, party, policy)}
    waived = sorted((_waive(each, valid) for each in findings), key=lambda finding: finding.model_dump_json())
    return Decision(
        verdict=max((each.effective for each in waived), key=lambda each: each.severity, default=Verdict.ALLOW),
        findings=tuple(waived),
        duties=_duties(ordered, policy),
        student_is_derivative=_is_derivative(ordered, policy),
        sources=tuple(ordered),
        party=party,
        policy_version=policy.version,
        policy_digest=policy.digest,
        decided_on=today,
    )


def _findings(source: Source, party: Party, policy: Policy) -> Iterable[Finding]:
    known = [statement.entry for statement in source.statements if statement.entry is not None]
    entries = {name: policy.get(KINDS[source.role], name) for name in known}
    for statement in source.statements:
        if statement.problem is not None:
            yield _unknown(source, statement.problem, "put that right")
        elif statement.entry is None or entries[statement.entry] is None:
            reason = f"the policy has no entry for {statement.text!r}, as {statement.origin} says"
            yield _unknown(source, reason, _way_to_name(source))
    if not source.statements:
        yield _unknown(source, "nothing says what its licence is", _way_to_name(source))
    for entry in entries.values():
        if entry is not None:
            yield from findings_of(source, entry, party)


def _unknown(source: Source, reason: str, fix: str) -> Finding:
    return Finding(role=source.role, source=source.name, license=UNKNOWN, verdict=Verdict.DENY, reason=reason, fix=fix)


def _way_to_name(source: Source) -> str:
    if source.via is not None:
        return f"find out the terms of this base of {source.via}"
    if source.role in (Role.JUDGE, Role.SERVICE):
        return f"name its licence in terms.{source.role}s"
    return f"name its licence in terms.{source.role}.license"


def _waive(finding: Finding, waivers: list[Waiver]) -> Finding:
    if not finding.verdict.is_refusal:
        return finding
    for waiver in waivers:
        if (waiver.source, waiver.license) == (finding.source, finding.license):
            return finding.model_copy(update={"waiver": waiver})
    return finding


def _duties(sources: list[Source], policy: Policy) -> tuple[Duty, ...]:
    duties = {
        Duty(source=source.name, license=entry.id, obligation=obligation)
        for source in sources
        for entry in _entries(source, policy)
        for obligation in entry.obligations
        if kinds_of_use(source) & set(obligation.applies_to)
    }
    return tuple(sorted(duties, key=lambda duty: duty.model_dump_json()))


def _is_derivative(sources: list[Source], policy: Policy) -> bool:
    return any(
        entry.student_is_derivative == "yes" and source.role is not Role.PROMPTS
        for source in sources
        for entry in _entries(source, policy)
    )


def _entries(source: Source, policy: Policy) -> list[Entry]:
    names = {statement.entry for statement in source.statements if statement.entry is not None}
    return [entry for name in sorted(names) if (entry := policy.get(KINDS[source.role], name)) is not None]
