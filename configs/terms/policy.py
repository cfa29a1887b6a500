"""The policy: what each licence and each service's terms say about training on outputs, read from the YAML beside it.

Frozen, closed models, so that a mistyped key in an entry is an error and not a silence. The digest is of the content
and goes into every manifest.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from datetime import date
from enum import StrEnum
from functools import cache, cached_property
from pathlib import Path
from typing import Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML

from configs.errors import UserError

POLICY_DIRECTORY = Path(__file__).resolve().parent
MAX_AGE_DAYS = 180  # texts change a few times a year

UNSTATED: Final = "unstated"
"""What an entry has in place of a clause or a date that its text does not give, or that nobody has read."""

_YAML = YAML(typ="safe", pure=True)


class Record(BaseModel):
    """Base of everything here: frozen, closed."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Kind(StrEnum):
    """What an entry is about."""

    MODEL = "model_license"
    SERVICE = "service_terms"
    DATA = "data_license"


class Confidence(StrEnum):
    """How the entry is known: text read, quoted verbatim elsewhere, told by others, or not checked."""

    PRIMARY = "primary"
    QUOTED = "quoted"
    SECONDARY = "secondary"
    UNVERIFIED = "unverified"


class OutputRule(StrEnum):
    """May another model be trained on what comes out; for data, on what is in it."""

    ALLOW = "allow"
    ALLOW_WITH_OBLIGATIONS = "allow_with_obligations"
    SAME_FAMILY_ONLY = "same_family_only"
    NONCOMMERCIAL_ONLY = "noncommercial_only"
    RESEARCH_ONLY = "research_only"
    DENY_COMPETING = "deny_competing"
    DENY = "deny"
    UNKNOWN = "unknown"
    """The text is silent or ambiguous: a person has to look."""


class Use(StrEnum):
    """What the party wants the student for."""

    RESEARCH = "research"
    INTERNAL = "internal"
    COMMERCIAL = "commercial"


class Distribution(StrEnum):
    """How others come to the student: not at all, as weights, or through a service."""

    NONE = "none"
    WEIGHTS = "weights"
    SERVICE = "service"


class ObligationType(StrEnum):
    """What has to be done."""

    NAME_PREFIX = "name_prefix"
    NAME_NOT_PRIMARY = "name_not_primary"
    DISPLAY = "display"
    NOTICE_TEXT = "notice_text"
    LICENSE_COPY = "license_copy"
    AUP = "aup"
    USE_RESTRICTION_FLOWDOWN = "use_restriction_flowdown"
    ATTRIBUTION = "attribution"
    SHARE_ALIKE = "share_alike"


class ConditionType(StrEnum):
    """What has to be true of the party or of the source."""

    MAU_MAX = "mau_max"
    REVENUE_MAX = "revenue_max"
    REGION_EXCLUDED = "region_excluded"
    MODALITY_EXCLUDED = "modality_excluded"
    PAID_TIER_ONLY = "paid_tier_only"
    REQUIRES_DOCUMENT = "requires_document"


class Obligation(Record):
    """A duty, and whose: students' taught by ``outputs``, those' made of ``weights``, or users' of ``data``."""

    type: ObligationType
    applies_to: tuple[Literal["outputs", "weights", "data"], ...] = Field(min_length=1)
    value: str | None = None
    any_of: tuple[str, ...] = ()
    url: str | None = None
    clause: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.type in (ObligationType.NAME_PREFIX, ObligationType.NAME_NOT_PRIMARY, ObligationType.NOTICE_TEXT):
            if self.value is None:
                raise ValueError(f"an obligation {self.type} needs a value")
        elif self.type is ObligationType.DISPLAY and self.value is None and not self.any_of:
            raise ValueError("an obligation display needs a value or any_of")
        return self


class Condition(Record):
    """A limit; amounts are users a month for ``mau_max`` and US dollars a year for the others."""

    type: ConditionType
    value: int | None = None
    as_of: date | None = None
    regions: tuple[str, ...] = ()
    modality: Literal["multimodal"] | None = None
    uses: tuple[Use, ...] = tuple(Use)
    """Uses for which it counts."""
    distributions: tuple[Distribution, ...] = tuple(Distribution)
    """Ways of distribution for which it counts."""
    clause: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        needs_value = self.type in (ConditionType.MAU_MAX, ConditionType.REVENUE_MAX)
        if needs_value and self.value is None:
            raise ValueError(f"a condition {self.type} needs a value")
        needs_regions = self.type in (ConditionType.REGION_EXCLUDED, ConditionType.MODALITY_EXCLUDED)
        if needs_regions and not self.regions:
            raise ValueError(f"a condition {self.type} needs regions")
        return self


class HubTag(Record):
    """How Hugging Face cards name the licence: ``license``, and ``license_name`` where that is ``other``."""

    license: str
    license_name: str | None = None


class Match(Record):
    """By what else the licence is recognised; every entry that matches counts, not the best one alone."""

    repo_prefixes: tuple[str, ...] = ()
    repos: tuple[str, ...] = ()
    text_titles: tuple[str, ...] = ()
    """How the licence's text begins; case, punctuation and line breaks do not matter."""


class Entry(Record):
    """One licence, or the terms of one service."""

    id: str
    kind: Kind
    name: str
    provider: str | None = None
    """The service that the terms are of."""
    family: str | None = None
    """Models that the licence counts as its own."""
    spdx: str | None = None
    """SPDX identifier, ScanCode's ``LicenseRef-scancode-…``, or a private ``LicenseRef-…``."""
    hf: HubTag | None = None
    match: Match = Match()
    url: str | None = None
    effective: date | Literal["unstated"]
    """Day since which the text counts, or from which it is."""
    verified_on: date
    confidence: Confidence
    outputs_for_training: OutputRule
    clause: str = Field(min_length=1)
    """The clauses that say it, as the text counts them."""
    summary: str
    student_is_derivative: Literal["yes", "no", "silent"] = "silent"
    commercial: bool = True
    obligations: tuple[Obligation, ...] = ()
    conditions: tuple[Condition, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.kind is Kind.SERVICE) != (self.provider is not None):
            raise ValueError(f"{self.id}: service terms name their provider, licences have none")
        if self.outputs_for_training is OutputRule.SAME_FAMILY_ONLY and self.family is None:
            raise ValueError(f"{self.id}: same_family_only needs a family")
        return self

    @property
    def cited_clause(self) -> str | None:
        """The clause, or None where there is none to cite."""
        return None if self.clause == UNSTATED else self.clause

    @property
    def names(self) -> frozenset[str]:
        """Everything that names exactly this entry, in lower case."""
        names = {self.id, self.spdx, self.provider}
        if self.hf is not None:
            names |= {self.hf.license_name if self.hf.license == "other" else self.hf.license}
        return frozenset(name.lower() for name in names if name)

    def covers_repository(self, repository: str) -> bool:
        """Whether the repository is one of those that the licence is known to be of."""
        name, prefixes = repository.lower(), (prefix.lower() for prefix in self.match.repo_prefixes)
        return name.startswith(tuple(prefixes)) or name in {repo.lower() for repo in self.match.repos}

    def covers_text(self, text: str) -> bool:
        """Whether a line of the text begins with a title of the licence, which need not be the first of the text's."""
        return any(_title(each).search(text) for each in self.match.text_titles)


class Policy(Record):
    """All entries with their version."""

    version: str
    entries: tuple[Entry, ...]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the content, however the files are written."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()

    def get(self, kind: Kind, entry_id: str) -> Entry | None:
        """The entry of that very id, or None."""
        return next((each for each in self.entries if each.kind is kind and each.id == entry_id), None)

    def named(self, kind: Kind, name: str) -> tuple[Entry, ...]:
        """Entries that go by a name: id, SPDX id, Hub tag or provider."""
        return tuple(each for each in self.entries if each.kind is kind and name.lower() in each.names)

    def of_repository(self, kind: Kind, repository: str) -> tuple[Entry, ...]:
        """Every entry that is known to cover the repository."""
        return tuple(each for each in self.entries if each.kind is kind and each.covers_repository(repository))

    def of_text(self, kind: Kind, text: str) -> tuple[Entry, ...]:
        """Every entry whose licence has a title that begins a line of the text."""
        return tuple(each for each in self.entries if each.kind is kind and each.covers_text(text))


@cache
def _title(words: str) -> re.Pattern[str]:
    """The words at the beginning of a line, with any mark-up before them and any breaks between them."""
    joined = r"[\W_]{1,200}".join(re.escape(each) for each in words.split())
    return re.compile(rf"^(?:[^\w\n]|_)*{joined}(?!\w)", re.IGNORECASE | re.MULTILINE)


def stale(entries: Iterable[Entry], today: date) -> list[Entry]:
    """Entries that nobody has checked for more than `MAX_AGE_DAYS`."""
    return [each for each in entries if (today - each.verified_on).days > MAX_AGE_DAYS]


@cache
def load_policy(directory: Path = POLICY_DIRECTORY) -> Policy:
    """Read every YAML file of the directory.

    Raises:
        UserError: a file breaks a rule of the schema; names the file and the entry.
    """
    version, entries = "", []
    for path in sorted(directory.glob("*.yaml")):
        tree = _YAML.load(path.read_text(encoding="utf-8"))
        if tree["schema"] != 1:
            raise UserError(f"{path}: schema must be 1, not {tree['schema']!r}")
        version = max(version, str(tree["policy_version"]))
        entries += [_read_entry(path, tree["kind"], each) for each in tree["entries"]]
    taken = [(each.kind, each.id) for each in entries]
    if doubled := sorted({f"{kind} {entry_id}" for kind, entry_id in taken if taken.count((kind, entry_id)) > 1}):
        raise UserError(f"{directory}: {doubled[0]} is there twice; give one of the entries another id")
    return Policy(version=version, entries=tuple(entries))


def _read_entry(path: Path, kind: str, tree: dict[str, object]) -> Entry:
    try:
        return Entry.model_validate({"kind": kind, **tree})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: entry {tree.get('id')!r}: {key}: {first['msg']}") from None
