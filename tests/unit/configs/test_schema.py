"""The rules that a configuration keeps by itself, and what its fields promise."""

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from configs.errors import UserError
from configs.load import parse_run_config
from configs.schema import AdditionConfig, RunConfig, TrainingConfig
from configs.section import Section
from tests.unit.configs.trees import TREE, make_config, put

pytestmark = pytest.mark.unit


def refusal(**changed: Any) -> str:
    with pytest.raises(UserError) as error:
        make_config(**changed)
    return str(error.value)


def sections(model: type[BaseModel] = RunConfig) -> Iterator[type[BaseModel]]:
    """The class of every section, found through the annotations of the one above it."""
    yield model
    for field in model.model_fields.values():
        for candidate in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                yield from sections(candidate)


@pytest.mark.parametrize("section", sorted(set(sections()), key=lambda each: each.__name__), ids=lambda s: s.__name__)
def test_section_is_frozen_closed_and_documented(section: type[BaseModel]) -> None:
    assert issubclass(section, Section)
    assert section.model_config["frozen"]
    assert section.model_config["extra"] == "forbid"
    assert [name for name, field in section.model_fields.items() if not field.description] == []


def test_configuration_cannot_be_changed() -> None:
    config = make_config()
    with pytest.raises(ValidationError, match="frozen"):
        config.training.epochs = 2


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("teacher.model", "teacher.make"),
        ("prompts.source", "prompts.addition"),
        ("student.model", "student.init"),
        ("evaluation.source", "evaluation.addition"),
    ],
)
def test_one_of_two_keys_must_be_set_and_not_both(first: str, second: str) -> None:
    section, one = first.split(".")
    other = second.split(".")[1]
    values = {"model": "owner/name", "source": "prompts.jsonl", "make": TREE["teacher"]["make"], "init": {}}
    values["addition"] = {"num_problems": 1}
    for chosen in ({}, {one: values[one], other: values[other]}):
        with pytest.raises(UserError) as error:
            parse_run_config(put(TREE, section, chosen), "test")
        assert f"{section}: set exactly one of" in str(error.value)
        assert first in str(error.value)
        assert second in str(error.value)
    for chosen in ({one: values[one]}, {other: values[other]}):
        parse_run_config(put(TREE, section, chosen), "test")


def test_replicas_fewest_above_most_is_refused() -> None:
    message = refusal(teacher__min_replicas=3, teacher__max_replicas=2)
    assert "teacher.min_replicas (3)" in message
    assert "teacher.max_replicas (2)" in message
    assert make_config(teacher__min_replicas=2, teacher__max_replicas=2).teacher.max_replicas == 2


def test_divergence_needs_the_teachers_logprobs() -> None:
    assert "sampling.top_logprobs" in refusal(training__objective__kl_weight=0.5)
    config = make_config(training__objective__kl_weight=0.5, sampling__top_logprobs=8)
    assert config.training.objective.kl_weight == 0.5


@pytest.mark.parametrize(("workers", "accepted"), [(4, True), (6, False), ([2, 4], False)])
def test_shard_size_divides_a_fixed_number_of_workers(workers: Any, accepted: bool) -> None:
    if accepted:
        assert make_config(training__num_workers=workers, training__shard_size=4).training.shard_size == 4
    else:
        message = refusal(training__num_workers=workers, training__shard_size=4)
        assert "training.shard_size (4) must divide training.num_workers" in message


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_workers": 3}, "training.tensor_parallel_size (2) must divide training.num_workers"),
        ({"num_workers": [2, 5]}, "both numbers of a pair, and not (2, 5)"),
        ({"num_workers": 6, "shard_size": 3}, "training: tensor_parallel_size (2) must divide shard_size (3)"),
    ],
)
def test_tensor_parallel_size_divides_what_is_made_of_groups(changed: dict[str, Any], message: str) -> None:
    assert message in refusal(training=changed | {"tensor_parallel_size": 2})


def test_tensor_parallel_size_takes_groups_of_any_number_and_no_adapters() -> None:
    groups = {"training": {"tensor_parallel_size": 2, "num_workers": [2, 6]}}
    assert make_config(**groups).training.tensor_parallel_size == 2
    assert "must be 1 with student.lora" in refusal(**groups, student__lora={"r": 4})


def test_batch_of_a_step_is_said_in_sequences_or_in_tokens() -> None:
    message = "exactly one of batch_sequences (sequences of a step) and batch_tokens"
    assert message in refusal(training__batch_tokens=4096)
    assert message in refusal(training__batch_sequences=None)
    assert make_config(training__batch_tokens=4096, training__batch_sequences=None).training.batch_tokens == 4096


def test_control_student_needs_a_verifier_and_a_budget() -> None:
    assert "acceptance.verifier" in refusal(student__control=True, training__max_steps=5)
    assert "training.max_steps" in refusal(student__control=True, acceptance__verifier="exact_answer")
    config = make_config(student__control=True, acceptance__verifier="exact_answer", training__max_steps=5)
    assert config.student.control


OVERLAPPED: dict[str, Any] = {"cluster__phases": "overlapped", "training__max_steps": 5}
LABELS: dict[str, Any] = {"cluster__teacher_labels": {"pool": "a"}, "cluster__student_labels": {"pool": "b"}}


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"training__max_steps": None}, "needs training.max_steps"),
        ({"student__control": True, "acceptance__verifier": "exact_answer"}, "needs student.control=false"),
        ({"student__transfer": "text"}, "needs student.transfer=token_ids"),
        ({"training__objective__ground_truth_share": 0.5}, "needs training.objective.ground_truth_share=0"),
        ({"cluster__teacher_labels": {"pool": "a"}}, "set both cluster.teacher_labels and cluster.student_labels"),
        ({**LABELS, "cluster__phases": "in_turn"}, "set cluster.phases=overlapped, or leave them out"),
        ({**LABELS, "cluster__student_labels": {"pool": "in(a,b)"}}, "cluster.student_labels.pool"),
    ],
)
def test_phases_that_cannot_overlap_are_refused(changed: dict[str, Any], sentence: str) -> None:
    assert make_config(**OVERLAPPED, **LABELS).is_overlapped
    assert sentence in refusal(**OVERLAPPED | changed)


@pytest.mark.parametrize(("max_tokens", "accepted"), [(63, True), (64, False), (65, False)])
def test_completion_must_leave_the_prompt_room_in_the_context(max_tokens: int, accepted: bool) -> None:
    changed = {"teacher__engine__max_model_len": 64, "sampling__max_tokens": max_tokens}
    if accepted:
        assert make_config(**changed).sampling.max_tokens == max_tokens
    else:
        assert f"sampling.max_tokens ({max_tokens})" in refusal(**changed)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (
            {"n": 2, "temperature": 0},
            "n (2) asks for several answers to a prompt and temperature 0 is greedy, which has",
        ),
        ({"temperature": 2.1}, "sampling.temperature must be less than or equal to 2, not 2.1"),
        (
            {"stop": ["END", ""]},
            "sampling: stop has an empty string, which vLLM refuses with every prompt; leave it out",
        ),
    ],
)
def test_sampling_that_vllm_refuses_with_every_prompt_is_told_beforehand(
    changed: dict[str, Any], sentence: str
) -> None:
    assert sentence in refusal(sampling=changed)


@pytest.mark.parametrize(
    "changed", [{"n": 2, "temperature": 0.01}, {"temperature": 0.0}, {"temperature": 2.0}, {"stop": ["END", " "]}]
)
def test_sampling_that_vllm_takes_is_taken(changed: dict[str, Any]) -> None:
    make_config(sampling=changed)


@pytest.mark.parametrize("name", ["", " a", "-a", ".a", "a/b", "a b", "ä"])
def test_name_that_is_no_plain_file_name_is_refused(name: str) -> None:
    assert "name" in refusal(name=name)


@pytest.mark.parametrize("name", ["a", "qwen3-32b-to-1.7b", "A_b.c", "0"])
def test_name_of_letters_digits_and_marks_is_taken(name: str) -> None:
    assert make_config(name=name).name == name


@pytest.mark.parametrize(("fraction", "accepted"), [(0.0, True), (0.49, True), (0.5, False), (-0.1, False)])
def test_evaluation_fraction_leaves_most_rows_to_training(fraction: float, accepted: bool) -> None:
    if accepted:
        assert TrainingConfig(evaluation_fraction=fraction).evaluation_fraction == fraction
    else:
        with pytest.raises(ValidationError):
            TrainingConfig(evaluation_fraction=fraction)


def test_addition_with_more_problems_than_there_are_is_refused() -> None:
    with pytest.raises(ValidationError):
        AdditionConfig(num_problems=1_000_001)
