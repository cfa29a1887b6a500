"""The recipe's section ``terms``: what the user knows of the sources, who they are, and what they have been allowed.

Nothing of it decides what a run makes, only whether it may.
"""

from datetime import date
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from configs.repository import PublicName
from configs.section import Section
from configs.terms.policy import Distribution, Use

Sha256 = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]


class SourceTerms(Section):
    """What is known of a source's licence. It counts beside what the source says of itself, never instead of it."""

    license: str | None = None
    """Licence: an id of the policy (``stillhouse terms list``), an SPDX identifier or expression, or a Hub tag;
    ``own`` where all rights are yours."""
    base_models: tuple[str, ...] = ()
    """Repositories or directories of models that it was made from, for a model whose card does not say."""
    license_sha256: Sha256 | None = None
    """SHA-256 of the licence text that was read; the text beside the model must be the same."""
    multimodal: bool | None = None
    """Whether the model takes images or sound; unset counts as yes where a licence makes a difference."""


class JudgeTerms(SourceTerms):
    """A model whose judgement decides what the student learns from."""

    model: str
    """Its repository or directory."""


class ServiceTerms(Section):
    """A service through which a teacher or judge was asked."""

    provider: str
    """Provider, as ``stillhouse terms list`` names it, such as deepseek or openai."""
    tier: Literal["paid", "free"] | None = None
    """Which tier the account is on; unset is not taken for paid."""


class Party(Section):
    """Who trains the student, and what for. What a licence asks for and is not said here is refused, not guessed."""

    intended_use: Use = Use.COMMERCIAL
    """What the student is for: research, internal work of a company, or a commercial product."""
    distribution: Distribution = Distribution.NONE
    """How others come to the student: not at all, as weights, or through a service."""
    region: Annotated[str, StringConstraints(pattern="^([A-TV-Z][A-Z]|U[A-JL-Z])$")] | None = None
    """Where the party is at home: ISO code of the country, such as DE, US or GB (not UK), or EU."""
    monthly_active_users: Annotated[int, Field(ge=0)] | None = None
    """Users of all products of the party and its affiliates (users a month)."""
    annual_revenue_usd: Annotated[int, Field(ge=0)] | None = None
    """Revenue of the party and its affiliates (US dollars a year)."""
    competes_with: tuple[str, ...] | None = None
    """Families or providers whose products the student will compete with; an empty list says none, unset says nothing
    and counts as all."""
    student_family: str | None = None
    """Family that the student's base belongs to, for licences that allow only their own; unset takes the family of its
    licence."""


class Waiver(Section):
    """A person's decision that a refused source may be used all the same, with the document that allows it."""

    source: PublicName
    """The source's name as the refusal gives it: repository, directory, data set or provider."""
    license: str
    """Id of the licence or terms that are waived, or ``unknown`` for a source without a known licence."""
    document_sha256: Sha256
    """SHA-256 of the document: contract, letter, opinion of counsel."""
    document: str | None = None
    """The document's file; where it is given, its digest is compared."""
    approver: Annotated[str, StringConstraints(min_length=1)]
    """Who decided."""
    expires: date
    """Last day on which it counts (YYYY-MM-DD)."""


class TermsConfig(Section):
    """What the sources' licences are, who the party is, and what it has been allowed; none of it decides the data."""

    teacher: SourceTerms = SourceTerms()
    """The teacher's licence, beside what its directory or repository says; a home-made teacher has its own."""
    teachers: dict[str, SourceTerms] = Field(default_factory=dict)
    """The same for each of several ``teachers``, by their names."""
    student: SourceTerms = SourceTerms()
    """The licence of ``student.model``; random weights need none."""
    prompts: SourceTerms = SourceTerms()
    """The licence of ``prompts.source``; problems that the run makes need none."""
    judges: tuple[JudgeTerms, ...] = ()
    """Models whose judgement decides what is kept."""
    services: tuple[ServiceTerms, ...] = ()
    """Services that answered prompts; a broker and those behind it are one each. The run's own replicas are none."""
    party: Party = Party()
    """Who trains the student, and what for."""
    waivers: tuple[Waiver, ...] = ()
    """Decisions that a refused source may be used all the same."""
    student_name: Annotated[str, StringConstraints(min_length=1)] | None = None
    """Name under which the student is exported; unset takes the run's. Some licences say how it begins."""
    license_texts: dict[str, str] = Field(default_factory=dict)
    """Files with licence texts to pass on with the student, by the policy's id or the SPDX identifier; for those that
    do not lie beside a model on the machine that exports."""
    student_license: str | None = None
    """Licence that you give the student, where those of its sources leave the choice: an id of the policy, an SPDX
    identifier or a Hub tag. Unset takes the licence of its base; without one its card says that none was chosen."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for key in ("base_models", "license_sha256", "multimodal"):
            if getattr(self.prompts, key) not in (None, ()):
                raise ValueError(
                    f"prompts.{key} says nothing: of prompts the licence alone is looked at, so leave it out, and name "
                    "models that wrote them in terms.judges, services in terms.services"
                )
        return self
