"""What a teacher's replicas and a student's trainer may load, by the decision made where the command was given."""

from datetime import date
from pathlib import Path

from cluster.models import TeacherSource
from cluster.terms_sources import find_sources, local_directory
from configs.schema import RunConfig
from configs.terms.binding import Binding, Decided
from configs.terms.decision import evaluate
from configs.terms.policy import Distribution, load_policy
from configs.terms.records import Role, Source, Statement
from configs.terms.texts import decided_texts


def bind_teacher(config: RunConfig, source: TeacherSource) -> Binding:
    """The teacher as it lies on this machine, where its licence was decided on, and what it was taken for."""
    return _bind(config, Role.TEACHER, source.model, source.revision)


def bind_student(config: RunConfig) -> Binding | None:
    """The weights that the student starts from, likewise; None where they are random."""
    student = config.student
    return None if student.model is None else _bind(config, Role.STUDENT, student.model, student.revision)


def _bind(config: RunConfig, role: Role, model: str, revision: str | None) -> Binding:
    directory = local_directory(model, revision)
    texts = None if directory is None else tuple(sorted(decided_texts(directory).items()))
    if not texts and not Path(model).expanduser().is_dir():
        texts = None  # of a repository, the cache may hold some files alone
    must_be_pinned = config.terms.party.distribution is not Distribution.NONE
    return Binding(model, revision, texts, must_be_pinned, _decided(config, role, model))


def _decided(config: RunConfig, role: Role, model: str) -> Decided | None:
    """None for a home-made teacher, of which there is nothing to read."""
    sources = [each for each in find_sources(config, load_policy()) if each.role is role]
    statements = [said for each in sources if each.name == model for said in each.statements]
    if all(each.name != model for each in sources):
        return None
    bases = tuple(dict.fromkeys(each.name for each in sources if each.via == model))
    entries = dict.fromkeys(said.entry for said in statements if said.entry is not None)
    base_licenses = tuple(each for each in entries if _may_be_a_bases(config, role, each))
    return Decided(tuple(dict.fromkeys(said.meaning for said in statements)), bases, base_licenses)


def _may_be_a_bases(config: RunConfig, role: Role, entry: str) -> bool:
    """Whether a base of that licence would have been let through; waivers are for sources by name, so none counts."""
    said = Statement(text=entry, origin="the policy", entry=entry)
    base = Source(role=role, name="a base", statements=(said,))
    return not evaluate([base], config.terms.party, (), load_policy(), date.today()).refusals
