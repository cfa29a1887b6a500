"""Frozen weights in 4 bits: refused without bitsandbytes, and with it the same student up to the rounding."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.errors import UserError
from configs.schema import LoraConfig
from tests.unit.training.tiny import LLAMA, make_job
from training.flops import count_flops
from training.job import TrainJob
from training.lora import add_adapters, quantize_base
from training.model import build_model, load_tokenizer

CPU = torch.device("cpu")
WIDE = LLAMA | {"hidden_size": 64, "intermediate_size": 128}


def quantized_job(root: Path, model_type: str = "llama", arguments: dict[str, Any] = WIDE) -> TrainJob:
    lora = LoraConfig(r=4, quantization="nf4").model_dump(mode="json")
    return make_job(root, num_rows=2, lora=lora, init={"model_type": model_type, "arguments": arguments})


def test_quantize_base_without_bitsandbytes_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = quantized_job(tmp_path)
    model = build_model(job, load_tokenizer(job.tokenizer))
    monkeypatch.delitem(sys.modules, "training.linear4bit", raising=False)
    for name in ("bitsandbytes", "bitsandbytes.nn"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match="needs bitsandbytes, which is not installed; install the extra qlora"):
        quantize_base(model, job, CPU)


def test_quantize_base_packs_the_decoder_and_gradients_reach_the_adapters(tmp_path: Path) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="the extra qlora is not installed")
    job = quantized_job(tmp_path)
    model = build_model(job, load_tokenizer(job.tokenizer))
    ids = torch.tensor([[3, 4, 5]])
    expected, flops = model(input_ids=ids).logits.detach(), count_flops(model)
    quantize_base(model, job, CPU)
    found = model(input_ids=ids).logits
    assert 0 < (found - expected).abs().max() < 0.2 * expected.abs().max()
    assert count_flops(model).per_token == pytest.approx(flops.per_token * 4 / 6)  # as many weights, frozen
    add_adapters(model, job)
    packed = [layer for layer in model.modules() if isinstance(layer, bitsandbytes.nn.Linear4bit)]
    assert len(packed) == 2 * 7
    assert not isinstance(model.get_output_embeddings(), bitsandbytes.nn.Linear4bit)
    model.eval()(input_ids=ids)  # evaluation leaves the packed weights as they are
    model.train()(input_ids=ids).logits.sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert grads
    assert all("lora_" in name and grad is not None for name, grad in grads.items())


def test_quantize_base_student_without_linear_layers_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="the extra qlora is not installed")
    job = quantized_job(tmp_path, "gpt2", {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64})
    model = build_model(job, load_tokenizer(job.tokenizer))
    with pytest.raises(UserError, match="finds no linear layer in a student of type gpt2"):
        quantize_base(model, job, CPU)
