"""Greedy answers do not depend on how prompts are batched."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.unit.training.tiny import make_job
from training.generate import complete_greedy
from training.model import build_model, load_tokenizer

pytestmark = pytest.mark.integration

PROMPTS = [[1, 4, 13, 5, 14], [1, 4, 5, 6, 13, 7, 8, 14], [1, 9], [1, 4, 13, 5, 14]]


@pytest.fixture
def model_dir(tmp_path: Path) -> str:
    job = make_job(tmp_path, num_rows=2)
    tokenizer = load_tokenizer(job.tokenizer)
    model = build_model(job, tokenizer)
    torch.manual_seed(0)
    for parameter in model.parameters():  # the small standard initialisation would answer every prompt alike
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def greedy_by_hand(model_dir: str, prompt: list[int], max_tokens: int) -> list[int]:
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    tokens = list(prompt)
    while len(tokens) < len(prompt) + max_tokens and tokens[-1] != 2:
        with torch.no_grad():
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_complete_greedy_any_batch_size_gives_each_prompt_its_own_answer(model_dir: str, batch_size: int) -> None:
    expected = [greedy_by_hand(model_dir, prompt, 12) for prompt in PROMPTS]
    assert len({tuple(answer) for answer in expected}) == 3
    assert complete_greedy(model_dir, PROMPTS, max_tokens=12, batch_size=batch_size) == expected


def test_complete_greedy_end_token_ends_the_answer(model_dir: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    answer = greedy_by_hand(model_dir, PROMPTS[0], 12)
    model.generation_config.eos_token_id = answer[3]
    model.config.eos_token_id = answer[3]
    model.save_pretrained(model_dir)
    found = complete_greedy(model_dir, PROMPTS[:1], max_tokens=12, batch_size=1)[0]
    assert found == answer[: answer.index(answer[3]) + 1]
