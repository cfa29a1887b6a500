"""The smallest loop that trains the same model: plain PyTorch over a directory of packed tensors, no project imports.

``python benchmarks/training/bare_loop.py TENSORS MODEL [--device cuda]``. It is what the real loop is compared with,
in speed and in losses, so it computes no logits of positions without a loss either.
"""

import argparse
import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM


def train(tensors: Path, model_path: str, settings: dict, device: str, on_step: Callable[[dict], None]) -> None:
    """Take one optimiser step for each file; ``on_step`` gets step, loss, loss tokens and seconds of each."""
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32, attn_implementation="sdpa")
    model.to(device).train()
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings["weight_decay"]},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    betas = (settings["beta1"], settings["beta2"])
    optimizer = torch.optim.AdamW(groups, lr=settings["learning_rate"], betas=betas, fused=True)
    mixed = torch.autocast(device, torch.bfloat16) if settings["dtype"] == "bfloat16" else nullcontext()
    started = time.monotonic()
    for step, path in enumerate(sorted(tensors.glob("step-*.pt"))[: settings["num_steps"]], 1):
        micro_batches = torch.load(path, weights_only=True)
        num_tokens = sum(int((batch["labels"] >= 0).sum()) for batch in micro_batches)
        loss_sum = torch.zeros((), device=device)
        for batch in micro_batches:
            inputs, positions, labels = (batch[k].to(device) for k in ("input_ids", "position_ids", "labels"))
            with mixed:
                hidden = model.model(input_ids=inputs, position_ids=positions, use_cache=False).last_hidden_state
                is_loss = labels >= 0
                logits = model.lm_head(hidden[is_loss])
            loss = cross_entropy(logits.float(), labels[is_loss], reduction="sum")
            (loss / num_tokens).backward()
            loss_sum += loss.detach()
        torch.nn.utils.clip_grad_norm_(parameters, settings["max_grad_norm"])
        optimizer.step()
        optimizer.zero_grad()
        loss_mean, now = loss_sum.item() / num_tokens, time.monotonic()
        on_step({"step": step, "loss": loss_mean, "loss_tokens": num_tokens, "seconds": now - started})
        started = now


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tensors", type=Path)
    parser.add_argument("model")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    settings = json.loads((options.tensors / "settings.json").read_text())
    train(options.tensors, options.model, settings, options.device, lambda line: print(json.dumps(line), flush=True))
