"""``stillhouse terms``: the policy's entries, what a name stands for, and a recipe's decision in plain words."""

from datetime import date

from cluster.terms import decide, refusal, student_name
from configs.errors import UserError
from configs.schema import RunConfig
from configs.terms.naming import name_license
from configs.terms.policy import MAX_AGE_DAYS, UNSTATED, Entry, Kind, Obligation, load_policy, stale
from configs.terms.records import Decision, Duty, Finding, Source

KIND_TITLES = {Kind.MODEL: "licences of models", Kind.SERVICE: "terms of services", Kind.DATA: "licences of data"}


def print_policy() -> None:
    """One line an entry: its id, what it says of outputs, and how and when that was checked."""
    policy = load_policy()
    lines = [f"policy {policy.version}, sha256 {policy.digest}"]
    for kind, title in KIND_TITLES.items():
        lines += ["", title]
        for entry in sorted((each for each in policy.entries if each.kind is kind), key=lambda each: each.id):
            rule, known = entry.outputs_for_training.value, f"{entry.confidence.value} {entry.verified_on}"
            lines.append(f"  {entry.provider or entry.id:40} {rule:23} {known:21} {entry.name}")
    if old := stale(policy.entries, date.today()):
        lines += ["", f"not checked for {MAX_AGE_DAYS} days: {', '.join(each.id for each in old)}"]
    print("\n".join(lines))


def print_entries(name: str) -> None:
    """Everything that the policy has by that name, whatever it is: id, SPDX id, Hub tag, provider, or repository.

    Raises:
        UserError: the policy has nothing by that name.
    """
    policy, found = load_policy(), dict[Entry, None]()
    for kind in Kind:
        found |= dict.fromkeys(policy.of_repository(kind, name.removeprefix("hf://datasets/")))
        for statement in name_license(name, "the command line", kind, policy):
            if statement.entry is not None and (entry := policy.get(kind, statement.entry)) is not None:
                found[entry] = None
    if not found:
        raise UserError(
            f"the policy has no entry for {name!r}, so a run with it is refused; `stillhouse terms list` shows what it "
            "has, docs/terms.md how to add an entry or record a waiver (terms.waivers, license: unknown)"
        )
    print("\n\n".join("\n".join(_describe(entry)) for entry in found))


def print_decision(config: RunConfig) -> int:
    """The decision on a recipe with its reasons; returns the exit status, 0 where the run may go on."""
    decision = decide(config)
    policy = load_policy()
    lines = [
        f"verdict    {decision.verdict.value.replace('_', ' ')} (policy {policy.version}, sha256 {policy.digest[:16]})",
        f"party      {_party(decision)}",
        f"student    {student_name(config)}, "
        f"{'a derivative in the sense of a licence' if decision.student_is_derivative else 'no derivative'}",
        "",
        "sources",
    ]
    for source in decision.sources:
        lines += _source(source, decision)
    if decision.duties:
        lines += ["", "duties", *dict.fromkeys(_duty(duty) for duty in decision.duties)]
    if decision.refusals:
        lines += ["", "in the way", *(f"  - {refusal(finding, policy)}" for finding in decision.refusals)]
    lines += ["", "What licences and terms say, as far as the policy knows; not legal advice: docs/terms.md"]
    print("\n".join(lines))
    return 2 if decision.refusals else 0


def _describe(entry: Entry) -> list[str]:
    lines = [
        f"{entry.name} ({entry.kind.value.replace('_', ' ')} {entry.id})",
        f"  outputs    {entry.outputs_for_training.value}{_clause(entry.cited_clause) or ', no clause stated'}",
        f"             {entry.summary}",
        f"  student    derivative: {entry.student_is_derivative}",
        f"  commercial {'yes' if entry.commercial else 'no'}",
        f"  effective  {'not stated' if entry.effective == UNSTATED else entry.effective}",
        f"  checked    {entry.verified_on}, {entry.confidence.value}",
    ]
    if entry.spdx:
        lines.append(f"  SPDX       {entry.spdx}")
    if entry.url:
        lines.append(f"  text       {entry.url}")
    for each in entry.obligations:
        lines.append(f"  duty       {_obligation(each)} (for {', '.join(each.applies_to)})")
    for condition in entry.conditions:
        told = condition.model_dump(mode="json", exclude_defaults=True, exclude={"type", "clause"})
        values = "; ".join(f"{key} {_words(value)}" for key, value in told.items())
        lines.append(f"  condition  {condition.type.value}{_clause(condition.clause)} {values}".rstrip())
    return lines


def _words(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(str(each) for each in value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def _party(decision: Decision) -> str:
    told = decision.party.model_dump(mode="json", exclude_none=True)
    return ", ".join(f"{key} {_words(value)}" for key, value in told.items() if value != [])


def _source(source: Source, decision: Decision) -> list[str]:
    at = f" at {source.revision}" if source.revision else ""
    base = f", base of {source.via}" if source.via else ""
    lines = [f"  {source.role} {source.name}{at}{base}"]
    lines += [f"    says {each.text!r} ({each.origin})" for each in source.statements if each.problem is None]
    mine = [each for each in decision.findings if (each.role, each.source) == (source.role, source.name)]
    return lines + [f"    {_finding(each)}" for each in mine]


def _finding(finding: Finding) -> str:
    waived = ""
    if finding.waiver is not None:
        waived = f"; waived by {finding.waiver.approver} until {finding.waiver.expires}"
    verdict = finding.verdict.value.replace("_", " ")
    return f"{verdict}: {finding.license}{_clause(finding.clause)}: {finding.reason}{waived}"


def _duty(duty: Duty) -> str:
    return f"  - {_obligation(duty.obligation)} ({duty.license}, by {duty.source})"


def _obligation(obligation: Obligation) -> str:
    what = " or ".join(repr(each) for each in obligation.any_of) or obligation.value or obligation.url or ""
    return f"{obligation.type.value.replace('_', ' ')}{f': {what}' if what else ''}{_clause(obligation.clause)}"


def _clause(clause: str | None) -> str:
    return f", clause {clause}" if clause else ""
