"""What a decision is made of and made into: sources, findings, and the decision that is kept with the data."""

from datetime import date
from enum import StrEnum
from typing import Any, Literal

from configs.repository import PublicName
from configs.terms.policy import Obligation, Record
from configs.terms.recipe import Party, Waiver

# Of the party, what a reader needs to tell what was allowed; its numbers and plans are its own business.
PUBLIC_OF_PARTY = {"intended_use", "distribution", "region", "student_family"}


class Verdict(StrEnum):
    """From mild to strict."""

    ALLOW = "allow"
    ALLOW_WITH_OBLIGATIONS = "allow_with_obligations"
    REVIEW = "review"
    DENY = "deny"

    @property
    def severity(self) -> int:
        return list(Verdict).index(self)

    @property
    def is_refusal(self) -> bool:
        """Whether a run may not go on without a waiver."""
        return self in (Verdict.REVIEW, Verdict.DENY)


class Role(StrEnum):
    """What a source is to the student."""

    TEACHER = "teacher"
    JUDGE = "judge"
    PROMPTS = "prompts"
    STUDENT = "student"
    SERVICE = "service"


class Statement(Record):
    """One thing that is said of a source's licence, by whom, and the entry of the policy that it names, if any."""

    text: PublicName
    origin: str
    entry: str | None = None
    problem: str | None = None
    """Why it cannot be told what is said; a licence that somebody else names does not make up for it."""

    @property
    def meaning(self) -> str:
        """The entry, or what stands in its place; two statements of the same meaning are one in a decision."""
        return self.entry or self.problem or self.text


class Source(Record):
    """Something that the student is made from. ``via`` names the model in whose lineage it is.

    Example: ``Source(role="teacher", name="meta-llama/Llama-3.1-8B", via="deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
    statements=(Statement(text="meta-llama/Llama-3.1-", origin="policy", entry="llama-3.1-license-2024"),))``
    """

    role: Role
    name: PublicName
    statements: tuple[Statement, ...] = ()
    via: PublicName | None = None
    revision: str | None = None
    multimodal: bool | None = None
    tier: Literal["paid", "free"] | None = None


class Duty(Record):
    """An obligation of the student, with the source and the licence that it comes from."""

    source: str
    license: str
    obligation: Obligation


class Finding(Record):
    """What one licence says of one source for this party."""

    role: Role
    source: str
    license: str
    """Id of the policy's entry, or ``unknown``."""
    verdict: Verdict
    """Without any waiver."""
    clause: str | None = None
    reason: str
    fix: str | None = None
    """What would help beside a waiver."""
    waiver: Waiver | None = None

    @property
    def effective(self) -> Verdict:
        """The verdict, with the waiver where there is one."""
        return Verdict.ALLOW_WITH_OBLIGATIONS if self.waiver else self.verdict


class Decision(Record):
    """The answer for all sources together, with everything it was made from."""

    verdict: Verdict
    findings: tuple[Finding, ...]
    duties: tuple[Duty, ...]
    student_is_derivative: bool
    """A licence counts the student as a derivative, so its use restrictions reach the student's users."""
    sources: tuple[Source, ...]
    party: Party
    policy_version: str
    policy_digest: str
    decided_on: date

    def public_record(self) -> dict[str, Any]:
        """What others may read of it, as JSON values: of a waiver its document's digest and not where that lies."""
        told = self.model_dump(mode="json", exclude={"findings": {"__all__": {"waiver": {"document"}}}})
        return told | {"party": self.party.model_dump(mode="json", include=PUBLIC_OF_PARTY)}

    @property
    def refusals(self) -> tuple[Finding, ...]:
        """What stands in the way, the worst first, and the teacher's before others'."""
        refused = [finding for finding in self.findings if finding.effective.is_refusal]
        roles = list(Role)
        return tuple(sorted(refused, key=lambda each: (-each.effective.severity, roles.index(each.role))))
