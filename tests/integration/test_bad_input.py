"""Every mistake a user can make is one sentence that names the key or the line, with a non-zero exit."""

from pathlib import Path
from typing import Any

import pytest

from tests.integration.program import Outcome, stillhouse, write_lines, write_recipe

pytestmark = pytest.mark.integration

PROMPTS = [{"prompt": f"{n}+{n}="} for n in range(4)]


def assert_refused(outcome: Outcome, *needles: str) -> None:
    """One line on stderr that says ``error`` and everything the user needs; no traceback."""
    errors = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert outcome.code == 2, outcome.err
    assert len(errors) == 1, outcome.err
    assert "Traceback" not in outcome.err
    for needle in needles:
        assert needle in errors[0]


@pytest.fixture
def recipe(tmp_path: Path, qwen3: Path) -> Any:
    """Writes a recipe that would work, except for the sections a test gives."""
    prompts = write_lines(tmp_path / "prompts.jsonl", PROMPTS)
    sections = {
        "teacher": {"model": str(qwen3), "engine": {"dtype": "float32", "max_model_len": 64}},
        "prompts": {"source": str(prompts)},
        "student": {"model": str(qwen3)},
    }

    def write(**changed: Any) -> str:
        return str(write_recipe(tmp_path / "recipe.yaml", **(sections | changed)))

    return write


def test_mistyped_key_is_refused_with_the_nearest(recipe: Any) -> None:
    assert_refused(stillhouse("run", recipe(), "training.sequence_lenght=64"), "training.sequence_length")


def test_wrong_value_names_key_rule_and_value(recipe: Any) -> None:
    assert_refused(stillhouse("run", recipe(), "training.epochs=many"), "training.epochs", "integer", "many")


def test_override_without_value_is_refused(recipe: Any) -> None:
    assert_refused(stillhouse("run", recipe(), "training.epochs"), "section.key=value")


def test_missing_recipe_is_refused() -> None:
    assert_refused(stillhouse("run", "no-such-recipe.yaml"), "no-such-recipe.yaml")


def test_unknown_command_is_refused() -> None:
    assert_refused(stillhouse("distil"), "distil", "--help")


def test_missing_prompts_are_refused(recipe: Any) -> None:
    assert_refused(stillhouse("run", recipe(prompts={"source": "nowhere.jsonl"})), "prompts.source", "nowhere.jsonl")


def test_missing_teacher_directory_is_refused(recipe: Any) -> None:
    assert_refused(
        stillhouse("run", recipe(teacher={"model": "/no/such/teacher"})), "teacher.model", "/no/such/teacher"
    )


def test_missing_student_directory_is_refused(recipe: Any) -> None:
    assert_refused(stillhouse("run", recipe(student={"model": "./no/student"})), "student.model", "./no/student")


def test_broken_line_is_refused_with_file_and_line(recipe: Any, tmp_path: Path) -> None:
    write_lines(tmp_path / "prompts.jsonl", [*PROMPTS, '{"prompt": "half', {"prompt": "1+1="}])
    path = recipe()  # written after the prompts, which it does not touch
    write_lines(tmp_path / "prompts.jsonl", [*PROMPTS, '{"prompt": "half', {"prompt": "1+1="}])
    assert_refused(stillhouse("run", path), "prompts.jsonl:5", "JSON", "prompts.on_broken_line")


def test_row_without_prompt_is_refused(recipe: Any, tmp_path: Path) -> None:
    path = recipe()
    write_lines(tmp_path / "prompts.jsonl", [{"text": "1+1="}])
    assert_refused(stillhouse("run", path), "prompts.jsonl:1", "'prompt'")


def test_empty_prompts_are_refused(recipe: Any, tmp_path: Path) -> None:
    path = recipe()
    (tmp_path / "prompts.jsonl").write_text("")
    assert_refused(stillhouse("run", path), "no prompts")


def test_chat_without_template_is_refused(recipe: Any, tmp_path: Path, gpt2_without_template: Path) -> None:
    path = recipe(teacher={"model": str(gpt2_without_template)})
    write_lines(tmp_path / "prompts.jsonl", [{"messages": [{"role": "user", "content": "1+1="}]}])
    assert_refused(stillhouse("run", path), "chat template", str(gpt2_without_template))


def test_differing_tokenizers_are_refused_for_token_ids(recipe: Any, gpt2_without_template: Path) -> None:
    path = recipe(student={"model": str(gpt2_without_template), "transfer": "token_ids"})
    assert_refused(stillhouse("run", path), "student.transfer=token_ids", "student.transfer=text")


def test_short_student_context_is_refused(recipe: Any) -> None:
    outcome = stillhouse("run", recipe(), "training.sequence_length=4096")
    assert_refused(outcome, "training.sequence_length", "4096", "128")


def test_unwritable_run_directory_is_refused(recipe: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")  # also for root, who may write anywhere else
    assert_refused(stillhouse("run", recipe(), f"run_dir={tmp_path}/file/run"), "run_dir", f"{tmp_path}/file/run")


def test_directory_of_another_run_is_refused_with_the_keys(recipe: Any, tmp_path: Path) -> None:
    path = recipe()
    (tmp_path / "prompts.jsonl").unlink()
    stillhouse("run", path)  # claims the directory, then misses its prompts
    outcome = stillhouse("run", path, "sampling.temperature=0.5", "generation.clients=2")
    assert_refused(outcome, "sampling.temperature", "run_dir=")
    assert "generation.clients" not in outcome.err  # how it is made may change, what is made may not


def test_submit_without_a_cluster_is_refused(recipe: Any) -> None:
    outcome = stillhouse("submit", "configs/recipes/quickstart.yaml", "--address", "http://127.0.0.1:9")
    assert_refused(outcome, "--address", "127.0.0.1:9")


def test_report_before_the_end_names_the_missing_phase(recipe: Any) -> None:
    assert_refused(stillhouse("report", recipe()), "phase plan")


def test_status_without_a_run_is_refused(recipe: Any) -> None:
    assert_refused(stillhouse("status", recipe()), "there is no run")
