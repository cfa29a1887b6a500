"""Greedy answers of a student in process, for measuring it without an engine.

Shapes: B prompts at a time, T tokens.
"""

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from training.job import JobDevice
from training.model import load_tokenizer


def complete_greedy(
    model_dir: str,
    prompts: list[list[int]],
    *,
    max_tokens: int,
    batch_size: int,
    device: JobDevice = JobDevice.CPU,
    threads: int = 1,
) -> list[list[int]]:
    """Return the greedy completion of each prompt (token ids), up to and including the end token.

    Prompts are decoded in batches of like length, padded on the left. ``threads`` CPU threads compute.
    """
    torch.set_num_threads(threads)
    disable_progress_bar()
    tokenizer = load_tokenizer(model_dir)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype="auto", use_safetensors=True)
    assert isinstance(model, PreTrainedModel)
    model.eval().to("cuda" if device is JobDevice.GPU else "cpu")
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
    completions: list[list[int]] = [[] for _ in prompts]
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(prompts), batch_size):
        batch = by_length[start : start + batch_size]
        answers = _complete_batch(model, [prompts[i] for i in batch], max_tokens, pad_id)
        for i, answer in zip(batch, answers, strict=True):
            completions[i] = answer
    return completions


def _complete_batch(model: PreTrainedModel, prompts: list[list[int]], max_tokens: int, pad_id: int) -> list[list[int]]:
    width = max(map(len, prompts))
    input_ids_BT = torch.tensor([[pad_id] * (width - len(p)) + p for p in prompts], device=model.device)
    mask_BT = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    output_BT = model.generate(
        input_ids=input_ids_BT,
        attention_mask=mask_BT,
        max_new_tokens=max_tokens,
        do_sample=False,
        pad_token_id=pad_id,
        # A checkpoint's own sampling defaults would otherwise warn, or penalise repeated digits.
        temperature=None,
        top_p=None,
        top_k=None,
        repetition_penalty=1.0,
    )
    eos = model.generation_config.eos_token_id
    eos_ids = set(eos) if isinstance(eos, list) else {eos}
    return [_cut_at_end(row, eos_ids) for row in output_BT[:, width:].tolist()]


def _cut_at_end(tokens: list[int], eos_ids: set[int | None]) -> list[int]:
    for place, token in enumerate(tokens):
        if token in eos_ids:
            return tokens[: place + 1]
    return tokens
