"""Where a run's models come from: the teacher it loads or makes, and the tokenizer that the student speaks."""

import hashlib
import json
from dataclasses import dataclass

from upath import UPath

from cluster.run_dir import RunDir
from configs.identity import OPERATIONAL_KEYS
from configs.schema import MakeTeacherConfig, RunConfig


@dataclass(frozen=True, slots=True)
class TeacherSource:
    """Model and tokenizer of the teacher; a made teacher is a local directory without a revision."""

    model: str
    revision: str | None


def teacher_source(config: RunConfig, run_dir: RunDir, name: str | None = None) -> TeacherSource:
    """A teacher's directory or repository, the main one's without a name; for a made teacher, where it will be."""
    teacher = config.pool[name or config.main_teacher]
    if teacher.make is None:
        assert teacher.model is not None
        return TeacherSource(teacher.model, teacher.revision)
    return TeacherSource(str(made_teacher_dir(teacher.make, run_dir) / "training" / "hf"), None)


def made_teacher_dir(make: MakeTeacherConfig, run_dir: RunDir) -> UPath:
    """Directory of a home-made teacher, found by the content of its configuration, so that runs share it."""
    tree = make.model_dump(mode="json")
    operational = {key.removeprefix("training.") for key in OPERATIONAL_KEYS if key.startswith("training.")}
    tree["training"] = {key: value for key, value in tree["training"].items() if key not in operational}
    del tree["min_accuracy"]  # a bar to clear, not a way to make it
    digest = hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()
    return run_dir.cache / "teachers" / digest[:16]


def is_teacher_made(config: RunConfig, run_dir: RunDir) -> bool:
    """Whether the recipe's home-made teacher is in the cache already."""
    make = config.pool[config.main_teacher].make
    return make is not None and (made_teacher_dir(make, run_dir) / "training" / "result.json").exists()


def student_tokenizer(config: RunConfig, teacher: TeacherSource) -> tuple[str, str | None]:
    """The tokenizer the student speaks with its revision: its own, or the teacher's when its weights are random."""
    student = config.student
    return (teacher.model, teacher.revision) if student.model is None else (student.model, student.revision)
