"""What a recipe may ask of a watermark, and what is told of it."""

from typing import Any

import pytest

from configs.errors import UserError
from configs.identity import differing_keys, generation_fingerprint
from configs.watermark import WatermarkConfig
from tests.unit.configs.trees import make_config

pytestmark = pytest.mark.unit

MARK: dict[str, Any] = {"key_env": "MY_KEY", "key_id": "0123456789abcdef"}


def refusal(**changed: Any) -> str:
    with pytest.raises(UserError) as error:
        make_config(**changed)
    return str(error.value)


def test_recipe_without_a_watermark_has_none() -> None:
    assert make_config().pool["teacher"].watermark is None


def test_key_has_one_place_and_an_id() -> None:
    wanted = "set exactly one of watermark.key_env (an environment variable) and watermark.key_file"
    assert wanted in refusal(teacher__watermark={"key_id": MARK["key_id"]})
    assert wanted in refusal(teacher__watermark=MARK | {"key_file": "key"})
    assert "teacher.watermark.key_id is required" in refusal(teacher__watermark={"key_env": "MY_KEY"})
    assert "teacher.watermark.key_id must be" in refusal(teacher__watermark=MARK | {"key_id": "s3cret"})


def test_greedy_teacher_is_refused() -> None:
    assert "sampling.temperature is 0, which draws none" in refusal(teacher__watermark=MARK, sampling__temperature=0.0)


def test_more_samples_than_channels_are_refused_for_gumbel_alone() -> None:
    sentence = refusal(teacher__watermark=MARK, sampling__n=8)
    assert "sampling.n (8) must not exceed teacher.watermark.channels (1)" in sentence
    assert "set teacher.watermark.channels=8" in sentence
    make_config(teacher__watermark=MARK | {"channels": 8}, sampling__n=8)
    make_config(teacher__watermark=MARK | {"kind": "green_list"}, sampling__n=8)


def test_speculative_decoding_is_refused() -> None:
    speculative = {"method": "ngram", "num_speculative_tokens": 4}
    sentence = refusal(teacher__watermark=MARK, teacher__engine__speculative_config=speculative)
    assert "teacher.watermark cannot be had with teacher.engine.speculative_config" in sentence


@pytest.mark.parametrize("argument", ["additional_config", "logits_processors"])
def test_engine_argument_that_would_take_the_mark_away_is_refused(argument: str) -> None:
    assert f"teacher.engine.extra: {argument}" in refusal(
        teacher__watermark=MARK, teacher__engine__extra={argument: {}}
    )
    make_config(teacher__engine__extra={argument: {}})


def test_rules_hold_for_each_of_several_teachers() -> None:
    teachers = {"one": {"model": "a/b"}, "two": {"model": "a/c", "watermark": MARK}}
    changed = {"teacher": None, "teachers": teachers, "prompts__default_teacher": "one", "sampling__n": 2}
    assert "teachers.two.watermark.channels (1)" in refusal(**changed)


@pytest.mark.parametrize("change", [{"key_id": "f" * 16}, {"context_tokens": 2}, {"kind": "green_list"}])
def test_another_key_or_scheme_is_another_run(change: dict[str, Any]) -> None:
    first, second = make_config(teacher__watermark=MARK), make_config(teacher__watermark=MARK | change)
    assert differing_keys(first, second) == [f"teacher.watermark.{next(iter(change))}"]
    assert generation_fingerprint(first) != generation_fingerprint(second)


def test_what_is_recorded_finds_the_mark_again_and_tells_no_place() -> None:
    recorded = WatermarkConfig(**MARK).recorded
    assert recorded == {"kind": "gumbel", "context_tokens": 4, "channels": 1, "key_id": MARK["key_id"]}
    green = WatermarkConfig(**MARK | {"kind": "green_list"}).recorded
    assert green.keys() - recorded.keys() == {"green_share", "green_bias"}
    assert "MY_KEY" not in str(recorded) + str(green)
