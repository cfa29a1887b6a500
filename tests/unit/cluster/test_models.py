"""Where the teacher is: runs share a home-made one exactly when it would be the same."""

from typing import Any

import pytest
from upath import UPath

from cluster.models import TeacherSource, made_teacher_dir, student_tokenizer, teacher_source
from cluster.run_dir import RunDir
from configs.identity import OPERATIONAL_KEYS
from tests.unit.configs.trees import OPERATIONAL, make_config

pytestmark = pytest.mark.unit

RUN_DIR = RunDir(UPath("/runs/small"))


def directory(**changed: Any) -> UPath:
    config = make_config(**{f"teacher__make__{key}": value for key, value in changed.items()})
    assert config.teacher.make is not None
    return made_teacher_dir(config.teacher.make, RUN_DIR)


def test_made_teacher_lies_in_the_cache_that_runs_share() -> None:
    assert directory().parent == UPath("/runs/.cache/teachers")
    assert directory() == directory()
    make = make_config().teacher.make
    assert make is not None
    assert made_teacher_dir(make, RunDir(UPath("/runs/other"))) == directory()


@pytest.mark.parametrize("key", sorted(key for key in OPERATIONAL_KEYS if key.startswith("training.")))
def test_made_teacher_is_the_same_however_it_is_trained(key: str) -> None:
    assert directory(**{key.replace(".", "__"): OPERATIONAL[key]}) == directory()


def test_made_teacher_is_the_same_for_another_bar_to_clear() -> None:
    assert directory(min_accuracy=0.5) == directory()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("addition__num_problems", 101),
        ("addition__seed", 1),
        ("model__arguments", {"hidden_size": 33}),
        ("model__model_type", "gpt2"),
        ("training__max_steps", 11),
        ("training__seed", 1),
        ("training__batch_sequences", 4),
        ("training__optimizer__learning_rate", 1e-3),
        ("training__dtype", "float32"),
    ],
)
def test_made_teacher_is_another_when_it_learns_something_else(key: str, value: Any) -> None:
    assert directory(**{key: value}) != directory()


def test_teacher_source_of_a_made_teacher_is_its_directory() -> None:
    source = teacher_source(make_config(), RUN_DIR)
    assert source == TeacherSource(str(directory() / "training" / "hf"), None)


def test_teacher_source_of_a_loaded_teacher_is_its_repository() -> None:
    config = make_config(teacher={"model": "owner/name", "revision": "abc"})
    assert teacher_source(config, RUN_DIR) == TeacherSource("owner/name", "abc")


def test_student_tokenizer_is_its_own_or_the_teachers_at_the_revision_of_either() -> None:
    teacher = TeacherSource("owner/teacher", "a" * 40)
    assert student_tokenizer(make_config(), teacher) == ("owner/teacher", "a" * 40)
    own = make_config(student={"model": "owner/student", "revision": "b" * 40})
    assert student_tokenizer(own, teacher) == ("owner/student", "b" * 40)
