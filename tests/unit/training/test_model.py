"""Students from random weights and from directories, and what is refused with the key to change."""

from pathlib import Path
from typing import Any

import pytest
import torch

from configs.errors import UserError
from tests.unit.training.tiny import LLAMA, make_job
from training.job import JobDevice, TrainJob
from training.model import build_model, find_decoder_layers, load_tokenizer

# Counts its positions itself, so a packed row would go on where the row before it ended.
OPT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 16, "word_embed_proj_dim": 16}


def build(job: TrainJob) -> Any:
    return build_model(job, load_tokenizer(job.tokenizer))


def init_of(**arguments: Any) -> dict[str, Any]:
    return {"model_type": "llama", "arguments": LLAMA | arguments}


def test_build_model_from_init_depends_on_the_seed_alone(tmp_path: Path) -> None:
    weights = [build(make_job(tmp_path, seed=seed)).state_dict() for seed in (3, 3, 4)]
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(weights[0][name], weights[1][name])
    assert not torch.equal(weights[0][name], weights[2][name])


def test_build_model_from_init_takes_vocabulary_and_special_tokens_from_the_tokenizer(tmp_path: Path) -> None:
    config = build(make_job(tmp_path)).config
    assert (config.vocab_size, config.pad_token_id, config.bos_token_id, config.eos_token_id) == (16, 0, 1, 2)


def test_find_decoder_layers_returns_each_block(tmp_path: Path) -> None:
    assert len(find_decoder_layers(build(make_job(tmp_path)))) == 2


@pytest.mark.parametrize(
    ("policy", "recomputed"),
    [("none", []), ("full", [0, 1, 2, 3]), ("selective-every-2", [0, 2]), ("selective-every-3", [0, 3])],
)
def test_build_model_recomputes_the_layers_of_the_policy(tmp_path: Path, policy: str, recomputed: list[int]) -> None:
    model = build(make_job(tmp_path, init=init_of(num_hidden_layers=4), activation_checkpointing=policy)).train()
    calls: list[int] = []
    for place, layer in enumerate(find_decoder_layers(model)):
        layer.mlp.register_forward_pre_hook(lambda *_, place=place: calls.append(place))
    model(input_ids=torch.tensor([[3, 4]])).logits.sum().backward()
    assert calls == [0, 1, 2, 3, *reversed(recomputed)]


def test_build_model_missing_directory_is_named(tmp_path: Path) -> None:
    job = make_job(tmp_path, init=None, model=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="nowhere' does not exist"):
        build(job)


def test_build_model_pickled_weights_are_refused(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    model = build(job)
    model.config.save_pretrained(tmp_path / "pickled")
    torch.save(model.state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"cannot load student\.model"):
        build(make_job(tmp_path, init=None, model=str(tmp_path / "pickled")))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"init": None}, "exactly one of student.model"),
        ({"init": {"model_type": "lama", "arguments": {}}}, "model_type 'lama' is no model type"),
        ({"init": init_of(hiden_size=8)}, "hiden_size is no argument of a llama.*did you mean hidden_size"),
        ({"sequence_length": 65}, r"training\.sequence_length \(65\) must not exceed .* 64 tokens"),
        ({"init": {"model_type": "opt", "arguments": OPT}}, "type opt cannot be trained on packed rows"),
        ({"init": {"model_type": "gemma2", "arguments": LLAMA}, "attention": "sdpa"}, "leave out the .* soft cap"),
        ({"attention": "flex_attention"}, r"needs student\.device=gpu"),
    ],
)
def test_build_model_bad_input_is_refused(tmp_path: Path, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(make_job(tmp_path, **overrides))


@pytest.mark.parametrize(
    ("arguments", "chosen"),
    [({"head_dim": 16}, "flex_attention"), ({"head_dim": 16, "attention_dropout": 0.1}, "sdpa"), ({}, "sdpa")],
)
def test_build_model_on_a_gpu_attends_with_flex_attention_unless_that_would_refuse_the_first_step(
    tmp_path: Path, arguments: dict[str, Any], chosen: str
) -> None:
    """Its kernel has no dropout and wants heads of 16 at least; tiny ones have 8."""
    job = make_job(tmp_path, init=init_of(**arguments), device=JobDevice.GPU)
    assert build(job).config._attn_implementation == chosen
    if chosen == "sdpa":
        explicit = make_job(tmp_path, init=init_of(**arguments), device=JobDevice.GPU, attention="flex_attention")
        with pytest.raises(UserError, match=r"flex_attention cannot be had with .*; set training\.attention=auto"):
            build(explicit)


def test_build_model_vocabulary_smaller_than_the_tokenizer_is_refused(tmp_path: Path) -> None:
    model = build(make_job(tmp_path))
    model.resize_token_embeddings(10)
    model.save_pretrained(tmp_path / "small")
    with pytest.raises(UserError, match=r"vocabulary \(10\) is smaller than .* \(16\)"):
        build(make_job(tmp_path, init=None, model=str(tmp_path / "small")))


def test_load_tokenizer_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tokenizer directory .*nowhere' does not exist"):
        load_tokenizer(str(tmp_path / "nowhere"))
