"""Operations of a step, against counts by hand."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tests.unit.training.tiny import LLAMA
from training.flops import count_flops, find_peak

LENGTHS = np.array([5, 3, 1], np.int32)  # 15 + 6 + 1 pairs
V, D, H, L, F = 16, 16, 2, 2, 32
BODY = L * (4 * D * D + 3 * D * F)  # q, k, v, o of full heads; gate, up, down


def build(model_type: str, **arguments: object) -> PreTrainedModel:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(model_type, vocab_size=V, **{**LLAMA, **arguments})
        )
    assert isinstance(model, PreTrainedModel)
    return model


@pytest.mark.parametrize("is_tied", [True, False])
def test_of_step_dense_model_counts_weights_head_and_causal_pairs(is_tied: bool) -> None:
    flops = count_flops(build("llama", tie_word_embeddings=is_tied))
    attention = 12 * D * L * 22
    assert flops.of_step(LENGTHS, 4) == 6 * BODY * 9 + 6 * V * D * 4 + attention


def test_of_step_frozen_weights_need_no_gradient_of_their_own() -> None:
    model = build("llama")
    for parameter in model.model.layers.parameters():
        parameter.requires_grad = False
    assert count_flops(model).per_token == 4 * BODY


def test_of_step_sliding_window_bounds_the_pairs_of_its_layers() -> None:
    flops = count_flops(
        build("gemma3_text", head_dim=8, sliding_window=2, layer_types=["sliding_attention", "full_attention"])
    )
    pairs = 22 + (2 * 5 - 1) + (2 * 3 - 1) + 1
    assert flops.per_pair == flops.per_window_pair == 12 * H * 8
    assert flops.of_step(LENGTHS, 0) - flops.per_token * 9 == 12 * H * 8 * pairs


def test_of_step_mixture_counts_the_experts_that_a_token_goes_to() -> None:
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    mixture = count_flops(build("mixtral", **experts))
    assert mixture.per_token == 6 * L * (4 * D * D + D * 4 + 2 * 3 * D * F)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA A10G", 70e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("Some Other Device", None),
    ],
)
def test_find_peak_by_the_names_that_devices_give_themselves(name: str, peak: float | None) -> None:
    assert find_peak(name) == peak
