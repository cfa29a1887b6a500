"""The gates of the licence policy: before anything starts, before training, and before a student is released."""

import hashlib
from datetime import date
from pathlib import Path
from typing import Any

from cluster.admission import Admission, admit
from cluster.terms_sources import find_sources, local_directory, with_family
from configs.errors import UserError
from configs.repository import COMMIT_LENGTH, is_commit
from configs.schema import RunConfig
from configs.terms.decision import KINDS, evaluate
from configs.terms.policy import Distribution, ObligationType, Policy, load_policy
from configs.terms.recipe import SourceTerms
from configs.terms.records import Decision, Finding, Source
from configs.terms.texts import license_texts


def decide(config: RunConfig, recorded: tuple[Source, ...] = ()) -> Decision:
    """Today's decision over the recipe's sources, and over those that the data was recorded with."""
    policy = load_policy()
    sources = find_sources(config, policy)
    party = with_family(config.terms.party, sources, policy)
    return evaluate((*sources, *recorded), party, config.terms.waivers, policy, date.today())


def gate_plan(config: RunConfig) -> Decision:
    """Refuse what may not teach or be taught, before anything is started or written.

    Raises:
        UserError: a source is denied, unknown or wants a person's look; a revision is not pinned though others get
            the student; a licence text or a waiver's document is not the one that was named.
    """
    _check_waivers(config)
    decision = decide(config)
    _refuse(decision)
    _check_pinned(config)
    _check_texts(config)
    return decision


def gate_training(config: RunConfig, manifest: dict[str, Any]) -> Admission:
    """Hold the sealed rows against today's policy and recipe; says which of them are left out.

    Raises:
        UserError: what was allowed when the data was made no longer is, of any row; a waiver's document is not the one
            that was named.
    """
    _check_waivers(config)
    recorded = manifest.get("terms")
    admission = admit(config, manifest, recorded_sources(manifest), load_policy())
    when = (
        f" (the data was made on {recorded['decided_on']}, by policy {recorded['policy_version']})" if recorded else ""
    )
    _refuse(admission.decision, when)
    return admission


def gate_release(config: RunConfig, manifest: dict[str, Any]) -> Decision:
    """Hold the student's name and sources against today's policy and recipe.

    Raises:
        UserError: something is refused, a revision is not pinned, a waiver's document is not the one that was named, or
            a licence wants another name.
    """
    decision = gate_training(config, manifest).decision
    _check_pinned(config)
    name = student_name(config)
    for duty in decision.duties:
        value = duty.obligation.value or ""
        said = f"{_license_name(duty.license, decision)}{_clause(duty.obligation.clause)} of {duty.source}"
        match duty.obligation.type:
            case ObligationType.NAME_PREFIX if not name.startswith(value):
                raise UserError(
                    f"terms.student_name: {said} asks for a name that begins with {value!r}, and the student is called "
                    f"{name!r}; set terms.student_name={value.replace(' ', '-')}-{name}, say"
                )
            case ObligationType.NAME_NOT_PRIMARY if name.lower().startswith(value.lower()):
                raise UserError(
                    f"terms.student_name: {said} asks for a name that does not begin with {value!r}, and the student "
                    f"is called {name!r}; set another"
                )
    return decision


def recorded_sources(manifest: dict[str, Any] | None) -> tuple[Source, ...]:
    """The sources that sealed data was recorded with; none where it was sealed without terms."""
    recorded = (manifest or {}).get("terms")
    return tuple(Source.model_validate(each) for each in recorded["sources"]) if recorded else ()


def student_name(config: RunConfig) -> str:
    """The name that the student is exported under."""
    return config.terms.student_name or config.name


def refusal(finding: Finding, policy: Policy) -> str:
    """Why a source is refused, by which clause, and what to do."""
    entry = policy.get(KINDS[finding.role], finding.license)
    said = f"{entry.name}{_clause(finding.clause)}: " if entry else ""
    link = f" ({entry.url})" if entry and entry.url else ""
    ways = [finding.fix] if finding.fix else []
    ways.append(f"record a waiver in terms.waivers with source: {finding.source} and license: {finding.license}")
    verb = "is denied" if finding.verdict == "deny" else "needs a person's decision"
    return f"{finding.role} {finding.source} {verb}: {said}{finding.reason}{link}; {', or '.join(ways)}"


def _refuse(decision: Decision, when: str = "") -> None:
    refused = decision.refusals
    if refused:
        more = f", and {len(refused) - 1} more" if len(refused) > 1 else ""
        raise UserError(
            f"terms: {refusal(refused[0], load_policy())}{when}{more}; `stillhouse terms explain RECIPE` has it all"
        )


def _clause(clause: str | None) -> str:
    return f", clause {clause}," if clause else ""


def _license_name(entry_id: str, decision: Decision) -> str:
    return next((each.name for each in load_policy().entries if each.id == entry_id), entry_id)


def _models(config: RunConfig) -> list[tuple[str, str, str | None, SourceTerms]]:
    """Key, model, revision and declared terms of everything that is loaded."""
    models = []
    for name, teacher in config.pool.items():
        key = config.teacher_key(name)
        declared = config.terms.teachers.get(name, SourceTerms()) if config.teachers else config.terms.teacher
        if teacher.model is not None:
            models.append((key, teacher.model, teacher.revision, declared))
    if config.student.model is not None:
        models.append(("student", config.student.model, config.student.revision, config.terms.student))
    return models


def _check_pinned(config: RunConfig) -> None:
    distribution = config.terms.party.distribution
    if distribution is Distribution.NONE:
        return
    for key, model, revision, _ in _models(config):
        if not is_commit(revision) and not Path(model).expanduser().is_dir():
            raise UserError(
                f"{key}.revision must be a commit ({COMMIT_LENGTH} hex digits) where others get the student "
                f"(terms.party.distribution={distribution}), and {model} has {revision!r}; licences change with "
                "revisions, so take the commit whose licence was read"
            )


def _check_texts(config: RunConfig) -> None:
    judges = [(f"judges.{number}", each.model, None, each) for number, each in enumerate(config.terms.judges)]
    for key, model, revision, declared in (*_models(config), *judges):
        if declared.license_sha256 is None:
            continue
        directory = local_directory(model, revision)
        texts = license_texts(directory) if directory else {}
        if declared.license_sha256 not in texts.values():
            found = ", ".join(f"{path.name} {digest}" for path, digest in texts.items()) or "no licence text"
            place = directory or f"the Hub's cache for {model}, which has to be downloaded first"
            raise UserError(
                f"terms.{key}.license_sha256 ({declared.license_sha256}) is not there: {place} has {found}; read the "
                "text that came with the model, and name its digest"
            )


def _check_waivers(config: RunConfig) -> None:
    for number, waiver in enumerate(config.terms.waivers):
        if waiver.document is None:
            continue
        path = Path(waiver.document).expanduser()
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
        if digest != waiver.document_sha256:
            found = f"has sha256 {digest}" if digest else "is not there"
            raise UserError(
                f"terms.waivers.{number}.document: {path} {found}, and the waiver is for the document with sha256 "
                f"{waiver.document_sha256}; give the document that was approved"
            )
