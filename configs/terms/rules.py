"""How one entry of the policy applies to one source: the rule on outputs, and each condition, as findings."""

from collections.abc import Iterator
from typing import NamedTuple

from configs.terms.policy import Condition, ConditionType, Confidence, Entry, OutputRule, Use
from configs.terms.recipe import Party
from configs.terms.records import Finding, Role, Source, Verdict

EU = frozenset(
    {"AT", "BE", "BG", "CY", "CZ", "DE", "DK", "EE", "ES", "EU", "FI", "FR", "GR", "HR"}
    | {"HU", "IE", "IT", "LT", "LU", "LV", "MT", "NL", "PL", "PT", "RO", "SE", "SI", "SK"}
)

ALLOWED = (Verdict.ALLOW, "training on it is allowed")


class Answer(NamedTuple):
    """A verdict with its reason, and what would help beside a waiver."""

    verdict: Verdict
    reason: str
    fix: str | None = None


def findings_of(source: Source, entry: Entry, party: Party) -> Iterator[Finding]:
    """The findings of one licence; the first is of its rule on outputs."""
    answers = [(entry.cited_clause, _rule(source, entry, party))]
    answers += [(each.clause, _condition(source, each, party)) for each in entry.conditions]
    if entry.confidence is Confidence.UNVERIFIED:
        answers.append((None, Answer(Verdict.REVIEW, "nobody has checked this entry of the policy")))
    for position, (clause, answer) in enumerate(answers):
        if position == 0 or answer.verdict is not Verdict.ALLOW:
            yield Finding(
                role=source.role,
                source=source.name,
                license=entry.id,
                verdict=answer.verdict,
                clause=clause,
                reason=answer.reason,
                fix=answer.fix,
            )


def kinds_of_use(source: Source) -> frozenset[str]:
    """What of the source reaches the student: ``outputs``, ``weights`` or ``data``, as obligations name it."""
    return frozenset({{Role.STUDENT: "weights", Role.PROMPTS: "data"}.get(source.role, "outputs")})


def _rule(source: Source, entry: Entry, party: Party) -> Answer:
    has_duties = any(kinds_of_use(source) & set(each.applies_to) for each in entry.obligations)
    bound = Answer(Verdict.ALLOW_WITH_OBLIGATIONS, "allowed, with duties") if has_duties else Answer(*ALLOWED)
    if not entry.commercial and party.intended_use is Use.COMMERCIAL:
        return Answer(Verdict.DENY, "commercial use is not allowed", "take another source")
    if source.role is Role.STUDENT and entry.outputs_for_training in _ABOUT_OUTPUTS:
        return bound
    match entry.outputs_for_training:
        case OutputRule.ALLOW:
            return bound
        case OutputRule.ALLOW_WITH_OBLIGATIONS:
            return Answer(Verdict.ALLOW_WITH_OBLIGATIONS, "training another model on outputs is allowed, with duties")
        case OutputRule.SAME_FAMILY_ONLY:
            return _same_family(entry, party)
        case OutputRule.NONCOMMERCIAL_ONLY | OutputRule.RESEARCH_ONLY:
            return _research(entry, party)
        case OutputRule.DENY_COMPETING:
            return _competing(entry, party)
        case OutputRule.DENY:
            return Answer(Verdict.DENY, "training another model is not allowed", "take another source")
        case OutputRule.UNKNOWN:
            return Answer(Verdict.REVIEW, "the text leaves it open, so a person has to decide")


# Rules that only speak of outputs: fine-tuning the weights themselves is what these licences are for.
_ABOUT_OUTPUTS = (OutputRule.ALLOW, OutputRule.ALLOW_WITH_OBLIGATIONS, OutputRule.SAME_FAMILY_ONLY)


def _same_family(entry: Entry, party: Party) -> Answer:
    if party.student_family == entry.family:
        return Answer(Verdict.ALLOW_WITH_OBLIGATIONS, f"the student is of the family {entry.family}, which is allowed")
    return Answer(
        Verdict.DENY,
        f"training a model that is not of the family {entry.family} is not allowed",
        "take another teacher, or a student of that family",
    )


def _research(entry: Entry, party: Party) -> Answer:
    what = "research" if entry.outputs_for_training is OutputRule.RESEARCH_ONLY else "non-commercial use"
    if party.intended_use is Use.RESEARCH:
        return Answer(Verdict.ALLOW_WITH_OBLIGATIONS, f"allowed for {what} alone")
    if party.intended_use is Use.INTERNAL and entry.outputs_for_training is OutputRule.NONCOMMERCIAL_ONLY:
        return Answer(Verdict.REVIEW, f"allowed for {what} alone, and internal work of a company may be none")
    return Answer(Verdict.DENY, f"allowed for {what} alone", "take another source")


def _competing(entry: Entry, party: Party) -> Answer:
    names = {entry.family, entry.provider, entry.id}
    fix = "take another source, or say in terms.party.competes_with whose products the student competes with"
    if party.competes_with is None:
        return Answer(Verdict.DENY, "models that compete may not be trained, and nothing says that it won't", fix)
    if names & set(party.competes_with):
        return Answer(Verdict.DENY, "models that compete may not be trained", "take another source")
    return Answer(Verdict.REVIEW, "models that compete may not be trained, and the party says that it won't")


def _condition(source: Source, condition: Condition, party: Party) -> Answer:
    if party.intended_use not in condition.uses or party.distribution not in condition.distributions:
        return Answer(*ALLOWED)
    match condition.type:
        case ConditionType.MAU_MAX:
            users = party.monthly_active_users
            return _at_most(condition, users, "monthly_active_users", "monthly active users")
        case ConditionType.REVENUE_MAX:
            return _at_most(condition, party.annual_revenue_usd, "annual_revenue_usd", "dollars of revenue a year")
        case ConditionType.REGION_EXCLUDED:
            return _region(condition, party)
        case ConditionType.MODALITY_EXCLUDED:
            return Answer(*ALLOWED) if source.multimodal is False else _region(condition, party)
        case ConditionType.PAID_TIER_ONLY:
            if source.tier == "paid":
                return Answer(*ALLOWED)
            return Answer(Verdict.REVIEW, "only the paid tier counts", "say tier: paid in terms.services")
        case ConditionType.REQUIRES_DOCUMENT:
            return _document(condition, party)


def _at_most(condition: Condition, value: int | None, key: str, what: str) -> Answer:
    assert condition.value is not None
    if value is None:
        return Answer(
            Verdict.REVIEW,
            f"at most {condition.value:,} {what} are allowed, and the party's are not said",
            f"set terms.party.{key}",
        )
    if value > condition.value:
        return Answer(Verdict.DENY, f"at most {condition.value:,} {what} are allowed, and the party has more")
    return Answer(*ALLOWED)


def _region(condition: Condition, party: Party) -> Answer:
    excluded = ", ".join(condition.regions)
    what = f"{condition.modality} models are" if condition.modality else "it is"
    if party.region is None:
        reason = f"{what} not licensed in {excluded}, and the party's region is not said"
        fix = "set terms.party.region" + (", or multimodal: false for the source" if condition.modality else "")
        return Answer(Verdict.REVIEW, reason, fix)
    if _is_in(party.region, condition.regions):
        return Answer(Verdict.DENY, f"{what} not licensed in {excluded}, where the party is at home")
    return Answer(*ALLOWED)


def _is_in(region: str, regions: tuple[str, ...]) -> bool:
    return region in regions or ("EU" in regions and region in EU)


def _document(condition: Condition, party: Party) -> Answer:
    if condition.value is None:
        return Answer(Verdict.REVIEW, "an agreement of its own is needed")
    revenue = party.annual_revenue_usd
    if revenue is None:
        reason = f"above {condition.value:,} dollars a year an agreement is needed, and the party's revenue is not said"
        return Answer(Verdict.REVIEW, reason, "set terms.party.annual_revenue_usd")
    if revenue > condition.value:
        return Answer(Verdict.REVIEW, f"above {condition.value:,} dollars a year an agreement of its own is needed")
    return Answer(*ALLOWED)
