"""The formulas of a student's memory against the tensors that torch keeps, and the moments of a step."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from cluster.model_shape import ModelShape, read_shape
from cluster.student_memory import kept_bytes, student_bytes
from configs.schema import Attention, Device, TrainingConfig
from training.loss import StudentWithLoss

pytestmark = pytest.mark.unit

SEQUENCES, LENGTH, VOCABULARY = 2, 96, 300
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
QWEN3 = {**LLAMA, "model_type": "qwen3", "head_dim": 32}
GPT2: dict[str, Any] = {"model_type": "gpt2", "n_embd": 64, "n_layer": 3, "n_head": 4}
WITHOUT_DROPOUT = {**GPT2, "attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}


def shape_of(config: dict[str, Any]) -> ModelShape:
    shape = read_shape({**config, "vocab_size": VOCABULARY})
    assert shape is not None
    return shape


def training_of(**changed: Any) -> TrainingConfig:
    settings = {"sequence_length": LENGTH, "micro_batch_sequences": SEQUENCES, "batch_sequences": SEQUENCES}
    return TrainingConfig.model_validate({"dtype": "float32", **settings, **changed})


def count_kept(config: dict[str, Any], dtype: torch.dtype, attention: str) -> int:
    """Bytes that a micro-batch of two documents a sequence keeps until its backward pass, each storage once."""
    settings = {key: value for key, value in config.items() if key != "model_type"}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "vocab_size": VOCABULARY}
    made = AutoConfig.for_model(config["model_type"], **settings, **ids)
    student = StudentWithLoss(AutoModelForCausalLM.from_config(made, attn_implementation=attention).to(dtype)).train()
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    positions = torch.cat([torch.arange(40), torch.arange(LENGTH - 40)]).repeat(SEQUENCES, 1)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        student.model.base_model(
            input_ids=torch.full((SEQUENCES, LENGTH), 7), position_ids=positions, attention_mask=None, use_cache=False
        )
    weights = {parameter.untyped_storage().data_ptr() for parameter in student.parameters()}
    return sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in weights)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("config", "attention"),
    [
        pytest.param(LLAMA, "sdpa", id="repeated_keys"),
        pytest.param(LLAMA, "eager", id="eager"),
        pytest.param(QWEN3, "sdpa", id="head_norms"),
        pytest.param(GPT2, "sdpa", id="dropout"),
        pytest.param(WITHOUT_DROPOUT, "sdpa", id="norm_kernel"),
    ],
)
def test_layers_keep_what_torch_keeps_for_the_backward_pass(config: dict[str, Any], dtype: str, attention: str) -> None:
    training = training_of(dtype=dtype, attention=attention)
    expected = kept_bytes(shape_of(config), training, Device.CPU)
    # The last norm's output is a loss's input, which is not made here.
    expected -= SEQUENCES * LENGTH * 64 * (4 if dtype == "float32" else 2)
    assert count_kept(config, getattr(torch, dtype), attention) == pytest.approx(expected, rel=0.02)


def test_one_micro_batch_a_step_has_no_gradients_while_the_layers_are_full() -> None:
    shape = shape_of(LLAMA)
    one, two = (student_bytes(shape, training_of(batch_sequences=SEQUENCES * count), 1, Device.CPU) for count in (1, 2))
    assert one.state == two.state == 16 * shape.weights
    assert two.activations - one.activations == 4 * shape.weights


def test_state_is_all_there_is_at_the_end_of_a_step_of_few_tokens() -> None:
    shape = shape_of({**LLAMA, "hidden_size": 512})
    training = training_of(sequence_length=2, micro_batch_sequences=1, batch_sequences=1)
    assert student_bytes(shape, training, 1, Device.CPU).activations == 0.0


def test_sequences_twice_as_long_keep_twice_as_much_on_gpus_and_more_where_scores_are_kept() -> None:
    long = training_of(sequence_length=2 * LENGTH)
    for config, device in ((LLAMA, Device.GPU), (LLAMA, Device.CPU), (GPT2, Device.CPU)):
        shape = shape_of(config)
        more = kept_bytes(shape, long, device) / kept_bytes(shape, training_of(), device)
        assert more == 2.0 if device is Device.GPU else more > 2.05


def test_attention_of_the_recipe_is_counted() -> None:
    shape, auto = shape_of(LLAMA), training_of()
    kept = {each: kept_bytes(shape, training_of(attention=each), Device.GPU) for each in Attention}
    assert kept[Attention.FLEX] == kept[Attention.AUTO] == kept_bytes(shape, auto, Device.GPU)
    assert kept[Attention.FLEX] < kept[Attention.SDPA] < kept[Attention.EAGER]
