"""The character tokenizer survives saving, and differences between tokenizers are found."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import normalizers
from transformers import AutoTokenizer

from tests.unit.training.tiny import CHARACTERS, CHAT_TEMPLATE, save_tokenizer
from training.tokenizer import build_character_tokenizer, find_tokenizer_difference

TOKENIZER = build_character_tokenizer(CHARACTERS, CHAT_TEMPLATE)


@given(st.text(CHARACTERS))
def test_character_tokenizer_any_text_is_one_token_a_character_and_comes_back(text: str) -> None:
    ids = TOKENIZER(text)["input_ids"]
    assert ids == [3 + CHARACTERS.index(c) for c in text]
    assert TOKENIZER.decode(ids) == text


def test_character_tokenizer_saved_and_loaded_is_the_same(tmp_path: Path) -> None:
    loaded = AutoTokenizer.from_pretrained(save_tokenizer(tmp_path / "t"))
    assert loaded("12+3=15;")["input_ids"] == TOKENIZER("12+3=15;")["input_ids"]
    assert loaded.decode([*loaded("15")["input_ids"], 2], skip_special_tokens=True) == "15"
    assert (loaded.pad_token_id, loaded.bos_token_id, loaded.eos_token_id, len(loaded)) == (0, 1, 2, 16)
    messages = [{"role": "user", "content": "1+2="}]
    ids = loaded.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert ids == [1, 4, 13, 5, 14]


def test_character_tokenizer_repeated_character_is_refused() -> None:
    with pytest.raises(ValueError, match="different from each other"):
        build_character_tokenizer("0110")


def test_find_tokenizer_difference_equal_tokenizers_is_none(tmp_path: Path) -> None:
    assert find_tokenizer_difference(save_tokenizer(tmp_path / "a"), save_tokenizer(tmp_path / "b", None)) is None


@pytest.mark.parametrize(
    ("characters", "difference"),
    [("0123456789+=;-", "vocabularies of 16 and 17 tokens"), ("0123456789+;=", "the token ';' has id 15 and 14")],
)
def test_find_tokenizer_difference_other_vocabulary_is_named(tmp_path: Path, characters: str, difference: str) -> None:
    build_character_tokenizer(characters).save_pretrained(tmp_path / "b")
    assert find_tokenizer_difference(save_tokenizer(tmp_path / "a"), str(tmp_path / "b")) == difference


def test_find_tokenizer_difference_same_vocabulary_other_end_token_is_named(tmp_path: Path) -> None:
    other = build_character_tokenizer(CHARACTERS)
    other.eos_token = "<pad>"
    other.save_pretrained(tmp_path / "b")
    assert find_tokenizer_difference(save_tokenizer(tmp_path / "a"), str(tmp_path / "b")) == "eos_token_id 2 and 0"


def test_find_tokenizer_difference_same_vocabulary_other_encoding_shows_the_text(tmp_path: Path) -> None:
    other = build_character_tokenizer(CHARACTERS)
    other.backend_tokenizer.normalizer = normalizers.Replace("1", "2")
    other.save_pretrained(tmp_path / "b")
    found = find_tokenizer_difference(save_tokenizer(tmp_path / "a"), str(tmp_path / "b"))
    assert "12345" in str(found)
