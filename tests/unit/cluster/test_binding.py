"""What a teacher's replicas are told to load, from the recipe and from what lies on this machine."""

from pathlib import Path

import pytest

from cluster.binding import bind_student, bind_teacher
from cluster.models import TeacherSource
from configs.terms.binding import Binding, Decided
from tests.unit.configs.trees import make_config

pytestmark = pytest.mark.unit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TUNED = "somebody/tuned"


def test_teacher_is_bound_to_the_texts_on_this_machine(tmp_path: Path) -> None:
    bare, licensed = tmp_path / "bare", tmp_path / "licensed"
    for directory in (bare, licensed):
        directory.mkdir()
        (directory / "config.json").write_text("{}")
    (licensed / "LICENSE").write_text("You may.")
    assert bind_teacher(make_config(), TeacherSource(str(bare), None)).texts == ()
    [(name, digest)] = bind_teacher(make_config(), TeacherSource(str(licensed), None)).texts or ()
    assert (name, len(digest)) == ("LICENSE", 64)
    config = make_config(terms__party__distribution="weights")
    assert bind_teacher(config, TeacherSource("owner/model", COMMIT)).must_be_pinned
    assert bind_teacher(config, TeacherSource("owner/model", COMMIT)).texts is None


def bind(model: str, **terms: object) -> Binding:
    changed = {f"terms__{key}": value for key, value in terms.items()}
    return bind_teacher(make_config(teacher={"model": model}, **changed), TeacherSource(model, None))


def test_teacher_is_bound_to_what_it_was_taken_for() -> None:
    bound = bind(TUNED, teacher__license="mit", teacher__base_models=["Qwen/Qwen3-8B"])
    assert bound.decided == Decided(("mit",), ("Qwen/Qwen3-8B",), ("mit",))
    assert bind("Qwen/Qwen3-8B").decided == Decided(("apache-2.0",), (), ("apache-2.0",))
    assert bind(TUNED).decided == Decided(())


def test_student_is_bound_to_its_revision_texts_and_what_it_was_taken_for(tmp_path: Path) -> None:
    assert bind_student(make_config()) is None  # random weights
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "LICENSE").write_text("You may.")
    local = bind_student(make_config(student={"model": str(tmp_path)}, terms__student__license="mit"))
    assert local is not None
    assert ([name for name, _ in local.texts or ()], local.decided) == (["LICENSE"], Decided(("mit",), (), ("mit",)))
    student = {"model": "Qwen/Qwen3-0.6B", "revision": COMMIT}
    pinned = bind_student(make_config(student=student, terms__party__distribution="weights"))
    decided = Decided(("apache-2.0",), (), ("apache-2.0",))
    assert pinned == Binding("Qwen/Qwen3-0.6B", COMMIT, None, must_be_pinned=True, decided=decided)


def test_home_made_teacher_is_not_read() -> None:
    assert bind_teacher(make_config(), TeacherSource("/anywhere", None)).decided is None


def test_licence_that_needs_a_waiver_or_an_answer_is_no_bases() -> None:
    waiver = {
        "source": TUNED,
        "license": "llama-2-license-2023",
        "document_sha256": "0" * 64,
        "approver": "Counsel",
        "expires": "2999-01-01",
    }
    assert bind(TUNED, teacher__license="llama2", waivers=[waiver]).decided == Decided(("llama-2-license-2023",))
    assert bind(TUNED, teacher__license="llama3.1").decided == Decided(("llama-3.1-license-2024",))
    users = {"monthly_active_users": 10}
    assert bind(TUNED, teacher__license="llama3.1", party=users).decided == Decided(
        ("llama-3.1-license-2024",), (), ("llama-3.1-license-2024",)
    )
