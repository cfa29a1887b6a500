"""What a run is made from, as the policy's sources: from the recipe, and from what lies beside local models.

Looks at the disk alone, the Hub's cache included; a repository that is not there is known by its name.
"""

from collections.abc import Iterator
from pathlib import Path

from configs.repository import is_repository
from configs.schema import RunConfig
from configs.terms.decision import KINDS
from configs.terms.naming import name_license
from configs.terms.policy import Policy
from configs.terms.recipe import Party, SourceTerms
from configs.terms.records import Role, Source, Statement
from configs.terms.texts import Told, read_texts

HOME_MADE, ADDITION = "the home-made teacher", "prompts.addition"
DATA_PREFIX = "hf://datasets/"
MAX_LINEAGE = 16  # models in a row; who is further back is not looked for, so it is unknown


def find_sources(config: RunConfig, policy: Policy) -> tuple[Source, ...]:
    """Everything that the student is made from, lineages included."""
    return tuple(_find(config, policy))


def with_family(party: Party, sources: tuple[Source, ...], policy: Policy) -> Party:
    """The party with the family of its student's base, where every licence of that names the same one."""
    if party.student_family is not None:
        return party
    kind = KINDS[Role.STUDENT]
    named = [each.entry for source in sources if source.role is Role.STUDENT for each in source.statements]
    entries = [policy.get(kind, name) if name else None for name in named]
    families = {entry.family if entry else None for entry in entries}
    return party.model_copy(update={"student_family": families.pop()}) if len(families) == 1 else party


def local_directory(model: str, revision: str | None) -> Path | None:
    """Where a model's files lie on this machine: its own directory, or the Hub's cache."""
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if not is_repository(model):
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model, "config.json", revision=revision)
    return Path(found).parent if isinstance(found, str) else None


def _find(config: RunConfig, policy: Policy) -> Iterator[Source]:
    terms = config.terms
    for name, teacher in config.pool.items():
        declared = terms.teachers.get(name, SourceTerms()) if config.teachers else terms.teacher
        if teacher.model is None:
            yield Source(role=Role.TEACHER, name=HOME_MADE, statements=(_ours("stillhouse-home-made"),))
        else:
            yield from _model(Role.TEACHER, teacher.model, teacher.revision, declared, policy)
    for judge in terms.judges:
        yield from _model(Role.JUDGE, judge.model, None, judge, policy)
    if config.student.model is not None:
        yield from _model(Role.STUDENT, config.student.model, config.student.revision, terms.student, policy)
    yield _prompts(config, policy)
    for service in terms.services:
        statements = tuple(name_license(service.provider, "terms.services", KINDS[Role.SERVICE], policy))
        yield Source(role=Role.SERVICE, name=service.provider, tier=service.tier, statements=statements)


def _ours(entry: str) -> Statement:
    return Statement(text=entry, origin="stillhouse", entry=entry)


def _prompts(config: RunConfig, policy: Policy) -> Source:
    source, kind = config.prompts.source, KINDS[Role.PROMPTS]
    if source is None:
        return Source(role=Role.PROMPTS, name=ADDITION, statements=(_ours("stillhouse-addition"),))
    statements = list(_declared(config.terms.prompts, Role.PROMPTS, policy))
    if source.startswith(DATA_PREFIX):
        covering = policy.of_repository(kind, source.removeprefix(DATA_PREFIX))
        statements += [Statement(text=source, origin="the policy", entry=entry.id) for entry in covering]
    return Source(role=Role.PROMPTS, name=source, statements=tuple(statements))


def _model(
    role: Role,
    model: str,
    revision: str | None,
    declared: SourceTerms,
    policy: Policy,
    lineage: tuple[str, ...] = (),
) -> Iterator[Source]:
    directory = local_directory(model, revision)
    told = read_texts(directory, KINDS[role], policy) if directory else Told()
    statements = [*_declared(declared, role, policy), *told.statements, *_known(role, model, policy)]
    yield Source(
        role=role,
        name=model,
        revision=revision,
        via=lineage[-1] if lineage else None,
        multimodal=declared.multimodal,
        statements=tuple(dict.fromkeys(statements)),
    )
    lineage = (*lineage, model)
    for base in dict.fromkeys((*declared.base_models, *told.base_models)):
        if base in lineage:
            continue
        if len(lineage) < MAX_LINEAGE:
            yield from _model(role, base, None, SourceTerms(), policy, lineage)
        else:
            yield Source(role=role, name=base, via=model, statements=(_too_far_back(base),))


def _too_far_back(base: str) -> Statement:
    problem = f"it stands behind {MAX_LINEAGE} models, and no longer lineage is followed"
    return Statement(text=base, origin="its lineage", problem=problem)


def _declared(declared: SourceTerms, role: Role, policy: Policy) -> Iterator[Statement]:
    if declared.license is not None:
        yield from name_license(declared.license, "the recipe", KINDS[role], policy)


def _known(role: Role, model: str, policy: Policy) -> Iterator[Statement]:
    if not Path(model).expanduser().is_dir():
        for entry in policy.of_repository(KINDS[role], model):
            yield Statement(text=model, origin="the policy", entry=entry.id)
