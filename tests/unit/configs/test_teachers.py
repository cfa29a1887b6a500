"""Recipes with several teachers: what they must say, and what of it decides the data."""

import json
from pathlib import Path
from typing import Any

import pytest

from configs.errors import UserError
from configs.identity import differing_keys, generation_fingerprint
from configs.load import load_run_config, parse_run_config
from configs.schema import RunConfig
from tests.unit.configs.trees import TREE, make_config

pytestmark = pytest.mark.unit

TWO = {"small": {"model": "owner/small"}, "large": {"model": "owner/large", "max_replicas": 4}}


def tree(**changed: Any) -> dict[str, Any]:
    """The small recipe with two teachers and a column that chooses between them."""
    rest = {key: value for key, value in TREE.items() if key != "teacher"}
    return {**rest, "teachers": TWO, "prompts": {"source": "p.jsonl", "teacher_column": "teacher"}, **changed}


def parse(**changed: Any) -> RunConfig:
    return parse_run_config(tree(**changed), "here.yaml")


def test_pool_has_the_one_teacher_or_the_several_by_name() -> None:
    one = make_config()
    assert one.pool == {"teacher": one.teacher}
    assert one.main_teacher == "teacher"
    several = parse()
    assert list(several.pool) == ["small", "large"]
    assert several.main_teacher == "small"
    held_out = {"addition": {"num_problems": 5}, "teacher": "large"}
    assert parse(evaluation=held_out).main_teacher == "large"


@pytest.mark.parametrize(
    ("changed", "needles"),
    [
        ({"teachers": {}}, ["set exactly one of teacher", "and teachers"]),
        ({"teacher": {"model": "m"}}, ["set exactly one of teacher", "and teachers"]),
        ({"prompts": {"source": "p.jsonl"}}, ["prompts.teacher_column", "prompts.default_teacher"]),
        (
            {"prompts": {"source": "p.jsonl", "default_teacher": "huge"}},
            ["prompts.default_teacher (huge)", "small, large"],
        ),
        (
            {"prompts": {"addition": {"num_problems": 5}, "teacher_column": "teacher"}},
            ["prompts.addition", "prompts.default_teacher"],
        ),
        (
            {"evaluation": {"addition": {"num_problems": 5}, "teacher": "huge"}},
            ["evaluation.teacher (huge)", "small, large"],
        ),
        ({"teachers": {"a b": {"model": "m"}}}, ["teachers.a b", "match pattern"]),
        ({"teachers": TWO | {"home": TREE["teacher"]}}, ["teachers.home.make", "only the section teacher"]),
        (
            {"teachers": TWO | {"short": {"model": "m", "engine": {"max_model_len": 4}}}},
            ["sampling.max_tokens", "teachers.short.engine.max_model_len (4)"],
        ),
        ({"teachers": {"small": {"modle": "m"}}}, ["teachers.small.modle"]),
        ({"terms": {"teacher": {"license": "mit"}}}, ["terms.teacher is for", "under terms.teachers.<name>"]),
        ({"teachers": {"small": {"model": "m", "engine": {"max_num_seq": 4}}}}, ["max_num_seq", "max_num_seqs?"]),
    ],
)
def test_mistake_in_teachers_is_one_sentence(changed: dict[str, Any], needles: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        parse(**changed)
    for needle in needles:
        assert needle in str(refused.value)


def test_teacher_column_needs_teachers() -> None:
    with pytest.raises(UserError, match=r"prompts\.teacher_column needs teachers"):
        parse_run_config({**TREE, "prompts": {"source": "p.jsonl", "teacher_column": "teacher"}}, "here.yaml")


def test_operational_keys_of_each_of_several_teachers_may_change() -> None:
    changed = {"small": TWO["small"] | {"max_replicas": 3, "deadline": 60.0, "engine": {"max_num_seqs": 5}}}
    other = parse(teachers=TWO | changed)
    assert differing_keys(parse(), other) == []
    assert generation_fingerprint(parse()) == generation_fingerprint(other)


def test_deciding_keys_of_each_of_several_teachers_are_named() -> None:
    other = parse(teachers=TWO | {"large": TWO["large"] | {"revision": "abc"}})
    assert differing_keys(parse(), other) == ["teachers.large.revision"]
    assert generation_fingerprint(parse()) != generation_fingerprint(other)


def test_override_reaches_one_of_several_teachers(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(tree()))
    config = load_run_config(path, ("teachers.large.engine.max_num_seqs=7",))
    assert config.pool["large"].engine.max_num_seqs == 7
    assert config.pool["small"].engine.max_num_seqs == 256
