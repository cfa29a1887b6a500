"""Prompts become the teacher's token ids by its own chat template."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from configs.errors import UserError
from services.template import PromptRenderer
from training.tokenizer import build_character_tokenizer

pytestmark = pytest.mark.unit

CHARACTERS = "abcdefghijklmnopqrstuvwxyz:/"
TEMPLATE = (
    "{{ bos_token }}"
    "{% for m in messages %}"
    "{% if m['role'] == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "{{ m['role'] }}:{{ m['content'] }}/"
    "{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
    "{% if enable_thinking is defined and not enable_thinking %}hm{% endif %}"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("model")
    build_character_tokenizer(CHARACTERS, TEMPLATE).save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="module")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("base-model")
    build_character_tokenizer(CHARACTERS).save_pretrained(directory)
    return str(directory)


def load(source: str, **template_kwargs: object) -> PromptRenderer:
    return PromptRenderer.load(source, None, template_kwargs, False)


def render(renderer: PromptRenderer, prompt: str | list[dict[str, str]]) -> list[int]:
    """Tokens of one prompt."""
    [token_ids] = renderer.render([prompt])
    if isinstance(token_ids, ValueError):
        raise token_ids
    return token_ids


def ids(text: str) -> list[int]:
    return [3 + CHARACTERS.index(each) for each in text]


def test_render_chat_ends_where_the_answer_begins(model: str) -> None:
    chat = [{"role": "system", "content": "be"}, {"role": "user", "content": "hello"}]
    assert render(load(model), chat) == [1, *ids("system:be/user:hello/assistant:")]


def test_render_string_is_one_message_of_the_user(model: str) -> None:
    renderer = load(model)
    assert renderer.has_chat_template
    assert render(renderer, "hello") == render(renderer, [{"role": "user", "content": "hello"}])


def test_render_hands_the_recipes_arguments_to_the_template(model: str) -> None:
    assert render(load(model, enable_thinking=False), "x") == [*render(load(model), "x"), *ids("hm")]


def test_render_string_without_a_template_stays_raw(base_model: str) -> None:
    renderer = load(base_model)
    assert not renderer.has_chat_template
    assert render(renderer, "hello") == ids("hello")


def test_render_chat_without_a_template_is_refused(base_model: str) -> None:
    with pytest.raises(ValueError, match="no chat template"):
        render(load(base_model), [{"role": "user", "content": "hello"}])


def test_render_chat_that_the_template_refuses_carries_its_words(model: str) -> None:
    with pytest.raises(ValueError, match="no tools here"):
        render(load(model), [{"role": "tool", "content": "x"}])


def test_render_chat_of_an_undefined_field_is_refused(tmp_path: Path) -> None:
    build_character_tokenizer(CHARACTERS, "{{ messages[0].name.first }}").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="name"):
        render(load(str(tmp_path)), "x")


def test_render_of_many_keeps_their_order_and_the_refused_ones_apart(model: str) -> None:
    renderer = load(model)
    first, refused, last = renderer.render(["a", [{"role": "tool", "content": "x"}], "b"])
    assert [first, last] == [render(renderer, "a"), render(renderer, "b")]
    assert isinstance(refused, ValueError)


def test_decode_leaves_special_tokens_out(model: str) -> None:
    assert load(model).decode([[1, *ids("hello"), 2, 0], []]) == ["hello", ""]


@pytest.mark.parametrize("content", [None, {"model_type": "llama"}])
def test_load_without_a_tokenizer_is_refused_with_the_place(tmp_path: Path, content: dict[str, str] | None) -> None:
    source = tmp_path / "model"
    if content is not None:
        source.mkdir()
        (source / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError) as error:
        load(str(source))
    assert f"no tokenizer can be loaded from {source}" in str(error.value)


LIGHT = """
import json, sys
from services.template import PromptRenderer, import_transformers_without_torch

import_transformers_without_torch()
renderer = PromptRenderer.load(sys.argv[1], None, {}, False)
[ids] = renderer.render(["abc"])
loaded = "torch" in sys.modules
import torch

print(json.dumps([loaded, ids, renderer.decode([ids]), renderer.fingerprint()]))
"""


def test_renderer_without_torch_renders_and_decodes_the_same_and_leaves_torch_to_others(model: str) -> None:
    answer = subprocess.run([sys.executable, "-c", LIGHT, model], capture_output=True, text=True, timeout=120)
    assert answer.returncode == 0, answer.stderr
    assert answer.stderr == ""
    renderer = load(model)
    [ids] = renderer.render(["abc"])
    assert json.loads(answer.stdout) == [False, ids, renderer.decode([ids]), renderer.fingerprint()]
