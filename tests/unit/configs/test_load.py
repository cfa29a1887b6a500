"""Recipes and overrides: what is read, in which order it wins, and how each mistake is told."""

import json
from pathlib import Path
from typing import Any

import pytest

from configs.errors import UserError
from configs.load import dump_run_config, load_run_config, parse_run_config
from configs.schema import Device, RunConfig
from tests.unit.configs.trees import TREE, make_config, put

pytestmark = pytest.mark.unit


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(put(TREE, "training.epochs", 3)))
    return path


def refusal(recipe: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as error:
        load_run_config(recipe, overrides)
    return str(error.value)


def value_at(config: RunConfig, key: str) -> Any:
    node: Any = config
    for part in key.split("."):
        node = getattr(node, part)
    return node


def test_load_recipe_wins_over_defaults_and_overrides_win_over_it(recipe: Path) -> None:
    assert RunConfig.model_fields["training"].default.epochs == 1
    assert load_run_config(recipe).training.epochs == 3
    assert load_run_config(recipe, ("training.epochs=4", "training.epochs=5")).training.epochs == 5


def test_load_override_leaves_the_keys_beside_it(recipe: Path) -> None:
    config = load_run_config(recipe, ("teacher.make.addition.seed=9",))
    assert (config.teacher.make.addition.seed, config.teacher.make.addition.num_problems) == (9, 100)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("training.optimizer.learning_rate", "1e-5", 1e-5),
        ("training.optimizer.learning_rate", "2.5E-4", 2.5e-4),
        ("sampling.temperature", "0", 0.0),
        ("training.compile", "true", True),
        ("sampling.stop", "[END, '###']", ("END", "###")),
        ("sampling.stop", "[]", ()),
        ("training.max_steps", "null", None),
        ("training.max_steps", "", None),
        ("training.num_workers", "[1,2]", (1, 2)),
        ("student.device", "gpu", Device.GPU),
        ("run_dir", "s3://bucket/runs/a=b", "s3://bucket/runs/a=b"),
        ("teacher.engine.extra", "{async_scheduling: false}", {"async_scheduling": False}),
        ("teacher.engine.extra.kv_cache_dtype", "fp8", {"kv_cache_dtype": "fp8"}),
        ("teacher.chat_template_kwargs", "{enable_thinking: no}", {"enable_thinking": "no"}),  # YAML 1.2
    ],
)
def test_load_override_value_is_yaml(recipe: Path, key: str, text: str, value: Any) -> None:
    config = load_run_config(recipe, ("training.max_steps=7", f"{key}={text}"))
    # An open section has the keys a user gives it; its own value is the whole mapping.
    found = value_at(config, key.removesuffix(".kv_cache_dtype"))
    assert found == value
    assert type(found) is type(value)


def test_load_number_without_a_point_in_the_recipe_is_a_number(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(TREE)[:-1] + ', "training": {optimizer: {learning_rate: 1e-5}}}')
    assert load_run_config(path).training.optimizer.learning_rate == 1e-5


@pytest.mark.parametrize(
    ("override", "needles"),
    [
        ("training.sequence_lenght=8", ["training.sequence_lenght", "did you mean training.sequence_length?"]),
        ("trainig.epochs=2", ["unknown key trainig", "did you mean training?"]),
        ("training.optimizer.lr_schedule=wsd", ["training.optimizer.lr_schedule", "training.optimizer.schedule?"]),
        ("teacher.make.addition.num_problem=5", ["teacher.make.addition.num_problem", "addition.num_problems?"]),
        ("teacher.engine.zzz=5", ["unknown key teacher.engine.zzz", "tensor_parallel_size", "max_model_len"]),
        ("zzz=5", ["unknown key zzz", "a recipe has", "teacher", "deadlines"]),
        ("training.epochs=many", ["training.epochs", "integer", "'many'"]),
        ("training.epochs=0", ["training.epochs", "greater than 0", "not 0"]),
        ("training.num_workers=[2,1]", ["training.num_workers", "a pair [min, max]", "not [2, 1]"]),
        ("training.num_workers=some", ["training.num_workers: must be a number of workers", "not 'some'"]),
        ("sampling.top_p=1.5", ["sampling.top_p", "less than or equal to 1", "1.5"]),
        ("sampling.temperature=.nan", ["sampling.temperature"]),
        ("sampling.temperature=2.5", ["sampling.temperature", "less than or equal to 2", "2.5"]),
        ("sampling.stop=END", ["sampling.stop", "'END'"]),
        ("sampling.truncation=drop", ["sampling.truncation", "'reject', 'keep' or 'retry_once'", "'drop'"]),
        ("training.overlong=cut", ["training.overlong", "refuse", "drop", "'cut'"]),
        ("training=3", ["training must be", "not 3"]),
        ("name=", ["name", "None"]),
        ("name=../elsewhere", ["name", "'../elsewhere'"]),
        ("training.epochs", ["'training.epochs'", "section.key=value"]),
        ("=3", ["'=3'", "section.key=value"]),
        ("training.epochs=[1", ["training.epochs", "not valid YAML"]),
        ("name.first=a", ["name.first", "name is a value, not a section"]),
    ],
)
def test_load_mistake_is_one_line_that_names_key_and_rule(recipe: Path, override: str, needles: list[str]) -> None:
    message = refusal(recipe, override)
    assert "\n" not in message
    for needle in needles:
        assert needle in message


def test_load_several_mistakes_are_told_at_once(recipe: Path) -> None:
    message = refusal(recipe, "training.epochs=0", "sampling.n=-1", "student.models=x")
    for key in ("training.epochs", "sampling.n", "student.models"):
        assert key in message


def test_load_missing_recipe_is_named(tmp_path: Path) -> None:
    assert "nowhere.yaml" in refusal(tmp_path / "nowhere.yaml")
    assert str(tmp_path) in refusal(tmp_path)  # a directory is no recipe


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just words", "3"])
def test_load_recipe_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    message = refusal(path)
    assert str(path) in message
    assert "mapping" in message


@pytest.mark.parametrize("text", ["teacher: [", "name: a\nname: b\n", "a: b: c", "\tname: a"])
def test_load_recipe_that_is_no_yaml_is_refused_with_the_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    message = refusal(path)
    assert "not valid YAML" in message
    assert "line " in message
    assert "\n" not in message


@pytest.mark.parametrize("missing", ["name", "prompts", "student"])
def test_load_required_section_that_is_missing_is_named(missing: str) -> None:
    tree = {key: value for key, value in TREE.items() if key != missing}
    with pytest.raises(UserError, match=f"here.yaml: {missing} is required"):
        parse_run_config(tree, "here.yaml")


def test_dump_of_a_configuration_loads_as_the_same_recipe(tmp_path: Path) -> None:
    config = make_config(
        sampling__stop=["END"], training__optimizer__learning_rate=1e-5, teacher__engine__extra={"seed": None}
    )
    path = tmp_path / "config.json"
    path.write_text(dump_run_config(config))
    assert load_run_config(path) == config


def test_dump_of_an_infinite_deadline_loads_again_or_is_refused_at_once(tmp_path: Path, recipe: Path) -> None:
    try:
        config = load_run_config(recipe, ("deadlines.no_progress=.inf",))
    except UserError:
        return
    path = tmp_path / "config.json"
    path.write_text(dump_run_config(config))
    assert load_run_config(path) == config
