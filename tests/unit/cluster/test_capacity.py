"""What fits, what it takes, and what is refused before anything is started."""

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.capacity import decode_tokens_per_s, fit_student, fit_teacher, training_tokens_per_s
from cluster.estimate import check_capacity, memory_lines
from cluster.model_shape import ModelShape, read_shape
from cluster.student_memory import layer_bytes
from configs.errors import UserError
from configs.prices import load_prices
from configs.schema import Device, EngineConfig, RunConfig, TrainingConfig
from tests.unit.configs.trees import make_config

pytestmark = pytest.mark.unit

LLAMA_8B: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
}
QWEN3_30B_A3B: dict[str, Any] = {
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "vocab_size": 151936,
}


def shape_of(config: dict[str, Any]) -> ModelShape:
    shape = read_shape(config)
    assert shape is not None
    return shape


@pytest.mark.parametrize(("config", "weights", "active"), [(LLAMA_8B, 8.03e9, 7.5e9), (QWEN3_30B_A3B, 30.5e9, 3.0e9)])
def test_published_models_have_their_published_sizes(config: dict[str, Any], weights: float, active: float) -> None:
    assert shape_of(config).weights == pytest.approx(weights, rel=0.01)
    assert shape_of(config).active_weights == pytest.approx(active, rel=0.05)


def test_latent_attention_is_not_guessed() -> None:
    assert read_shape({**LLAMA_8B, "kv_lora_rank": 512}) is None


def test_teacher_of_16_gb_fits_a_large_gpu_and_no_small_one() -> None:
    prices, shape, engine = load_prices(), shape_of(LLAMA_8B), EngineConfig(max_model_len=8192)
    fits = {name: fit_teacher(shape, engine, 8192, price.memory_gib) for name, price in prices.accelerators.items()}
    assert fits["H100"].weights_gib == pytest.approx(14.96, abs=0.1)
    assert fits["H100"].sequences == 54  # of 1 GiB each: 2 x 32 layers x 8 heads x 128 x 2 bytes x 8,192 tokens
    assert not fit_teacher(shape, engine, 8192, 16.0).fits
    halves = EngineConfig(tensor_parallel_size=2)
    assert fit_teacher(shape, halves, 8192, 16.0).fits


def test_student_is_spread_over_workers_and_saves_by_recomputation() -> None:
    shape, training = shape_of(LLAMA_8B), TrainingConfig(sequence_length=8192)
    assert not fit_student(shape, training, 1, 80).fits
    full = training.model_copy(update={"activation_checkpointing": "full"})
    assert fit_student(shape, full, 8, 80).fits
    assert fit_student(shape, full, 8, 80).state_gib < fit_student(shape, full, 4, 80).state_gib
    assert fit_student(shape, full, 8, 80).activations_gib < fit_student(shape, training, 8, 80).activations_gib / 4


def test_student_whose_layers_are_cut_gathers_and_keeps_less_but_whole_hidden_states() -> None:
    shape, training = shape_of(LLAMA_8B), TrainingConfig(sequence_length=8192)
    cut = training.model_copy(update={"tensor_parallel_size": 4})
    whole, part = fit_student(shape, training, 8, 80), fit_student(shape, cut, 8, 80)
    assert (whole.state_gib - part.state_gib) * 2**30 == pytest.approx(2 * shape.layer_weights * 2 * 3 / 4)
    assert 0.25 < part.activations_gib / whole.activations_gib < 0.55
    norms = 2 * (4 + 2 * 2) * shape.hidden  # of a token in bfloat16: input in float32, normal form, output
    layer, cut_layer = (layer_bytes(shape, each, Device.GPU) for each in (training, cut))
    assert 4 * cut_layer - layer == pytest.approx(3 * norms)


def test_decoding_gains_from_more_sequences_until_arithmetic_bounds_it() -> None:
    shape, h100 = shape_of(LLAMA_8B), load_prices().accelerators["H100"]
    few, many, most = (
        decode_tokens_per_s(shape, EngineConfig(max_num_seqs=n), h100, 1, 500) for n in (16, 256, 100_000)
    )
    assert 8 < many / few < 16  # not sixteen: their caches are read as well
    assert most < h100.bf16_flops / (2 * shape.active_weights)


def test_training_speed_is_six_operations_a_weight_and_token() -> None:
    shape, h100 = shape_of(LLAMA_8B), load_prices().accelerators["H100"]
    speed = training_tokens_per_s(shape, TrainingConfig(), h100, 8)
    assert speed == pytest.approx(0.4 * 8 * 989e12 / (6 * shape.active_weights))


def on_gpus(directory: Path, **changed: Any) -> RunConfig:
    """A recipe whose teacher and student are Llama 8B, of which config.json alone is here."""
    directory.joinpath("config.json").write_text(json.dumps(LLAMA_8B))
    tree = {
        "teacher__model": str(directory),
        "teacher__make": None,
        "teacher__accelerator_type": "H100",
        "teacher__engine__max_model_len": 8192,
        "student__model": str(directory),
        "student__init": None,
        "training__num_workers": 8,
        "training__activation_checkpointing": "full",
    }
    return make_config(**{**tree, **changed})


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"cluster__max_gpus": 4}, r"training.num_workers needs 8 GPUs .* may grow to 4 \(cluster.max_gpus\)"),
        ({"teacher__min_replicas": 9, "teacher__max_replicas": 9, "cluster__max_gpus": 8}, "teacher.min_replicas"),
        (
            {"teacher__accelerator_type": "A10G", "teacher__engine__dtype": "float32"},
            "model does not fit 1 A10G",
        ),
        ({"training__num_workers": 1}, "the student needs .* raise training.num_workers"),
        (
            {"training__num_workers": 16, "training__tensor_parallel_size": 16},
            r"training.tensor_parallel_size \(16\) must divide the student's 8 key and value heads",
        ),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, changed: dict[str, Any], sentence: str) -> None:
    check_capacity(on_gpus(tmp_path), load_prices())
    with pytest.raises(UserError, match=sentence):
        check_capacity(on_gpus(tmp_path, **changed), load_prices())


def test_gpus_of_phases_side_by_side_add_up(tmp_path: Path) -> None:
    overlapped = {"cluster__phases": "overlapped", "training__max_steps": 5, "teacher__min_replicas": 2}
    check_capacity(on_gpus(tmp_path, teacher__max_replicas=2, cluster__max_gpus=10, **overlapped), load_prices())
    sentence = r"training.num_workers together \(cluster.phases=overlapped\) needs 10 GPUs .* may grow to 9"
    with pytest.raises(UserError, match=sentence):
        check_capacity(on_gpus(tmp_path, teacher__max_replicas=2, cluster__max_gpus=9, **overlapped), load_prices())


def test_memory_lines_name_the_types_that_fit(tmp_path: Path) -> None:
    assert any("H100" in line for line in memory_lines(on_gpus(tmp_path), load_prices()))
