"""The loss of packed rows is the loss of each row alone, for each family of attention and head."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from configs.schema import ObjectiveConfig
from tests.unit.training.tiny import LLAMA, make_job, save_tokenizer
from training.batches import collate_packs
from training.corpus import Row
from training.loss import LogitTransform, StudentWithLoss, TeacherTopK, sum_loss
from training.model import build_model, load_tokenizer

GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
GEMMA = LLAMA | {"head_dim": 8, "sliding_window": 8}
MIXTURE = LLAMA | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "decoder_sparse_step": 1}
EXPERTS = LLAMA | {"num_local_experts": 4, "num_experts_per_tok": 2}
FAMILIES = {
    "llama": LLAMA,
    "llama tied": LLAMA | {"tie_word_embeddings": True},
    "qwen3": LLAMA | {"head_dim": 8},
    "gpt2": GPT2,
    "gemma2": GEMMA | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 1.0, "query_pre_attn_scalar": 8},
    "gemma3_text": GEMMA,
    "qwen3_moe": MIXTURE,
    "mixtral": EXPERTS,
    "cohere": LLAMA | {"logit_scale": 0.5},
    "granite": LLAMA | {"logits_scaling": 4.0},
}


def build(root: Path, family: str, **overrides: Any) -> PreTrainedModel:
    arguments = FAMILIES[family]
    job = make_job(root, num_rows=2, init={"model_type": family.split()[0], "arguments": arguments | overrides})
    return build_model(job, load_tokenizer(save_tokenizer(root / "tokenizer"))).eval()


def random_rows(num_rows: int) -> list[Row]:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 9, (num_rows, 2))
    return [Row(rng.integers(3, 16, p).astype(np.int32), rng.integers(3, 16, c).astype(np.int32)) for p, c in lengths]


def loss_alone(model: PreTrainedModel, row: Row) -> torch.Tensor:
    """Return the summed loss of one row's completion from the model's own logits."""
    ids = torch.tensor([[*row.prompt.tolist(), *row.completion.tolist()]])
    logits = model(input_ids=ids).logits[0, len(row.prompt) - 1 : -1]
    return cross_entropy(logits, ids[0, len(row.prompt) :], reduction="sum")


@pytest.mark.parametrize("family", FAMILIES)
def test_student_with_loss_packed_rows_equals_rows_alone(tmp_path: Path, family: str) -> None:
    model = build(tmp_path, family)
    rows = random_rows(9)
    batch = collate_packs([rows[:3], rows[3:7], rows[7:], []], sequence_length=64, pad_id=0)
    packed = StudentWithLoss(model)(*batch.tensors())
    packed.backward()
    packed_grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    alone = torch.stack([loss_alone(model, row) for row in rows]).sum()
    alone.backward()
    alone_grads = [p.grad for p in model.parameters() if p.grad is not None]
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5)
    for ours, reference in zip(packed_grads, alone_grads, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("transform", [LogitTransform(), LogitTransform(scale=0.5, softcap=2.0)])
@pytest.mark.parametrize("bias", [False, True])
def test_sum_loss_in_chunks_equals_all_at_once(bias: bool, transform: LogitTransform) -> None:
    torch.manual_seed(0)
    shapes = [(23, 8), (50, 8)] + [(50,)] * bias
    targets = torch.randint(50, (23,))
    losses, grads = [], []
    for chunk_logits in (50 * 5, 50 * 23):
        torch.manual_seed(1)
        tensors = [torch.randn(shape, requires_grad=True) for shape in shapes]
        loss = sum_loss(*tensors, *[None] * (not bias), targets, transform, None, chunk_logits)
        loss.backward()
        losses.append(loss)
        grads.append([tensor.grad for tensor in tensors])
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(grads[0], grads[1])


def test_sum_loss_bfloat16_is_summed_in_float32() -> None:
    # 1,000 tokens of ln 2 each: in bfloat16 the nearest sums are 4 apart.
    loss = sum_loss(
        torch.zeros(1000, 4, dtype=torch.bfloat16),
        torch.zeros(2, 4, dtype=torch.bfloat16),
        None,
        torch.zeros(1000).long(),
    )
    assert loss.dtype is torch.float32
    assert loss.item() == pytest.approx(693.147, abs=0.01)


def test_student_with_loss_batch_without_loss_tokens_has_zero_loss_and_gradient(tmp_path: Path) -> None:
    model = build(tmp_path, "llama")
    loss = StudentWithLoss(model)(*collate_packs([[]], sequence_length=16, pad_id=0).tensors())
    loss.backward()
    assert loss.item() == 0.0
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def make_teacher(num_tokens: int, **changed: float) -> TeacherTopK:
    """Return three candidates a token, of which the last token has two and the first token none."""
    torch.manual_seed(2)
    logprobs_NV = torch.randn(num_tokens, 50).log_softmax(-1)
    logprobs_NK, ids_NK = logprobs_NV.topk(3)
    logprobs_NK[0], logprobs_NK[-1, 2] = -torch.inf, -torch.inf
    return TeacherTopK(ids_NK, logprobs_NK, **{"weight": 0.25, "temperature": 2.0} | changed)


def reference_blend(logits_NV: torch.Tensor, targets_N: torch.Tensor, teacher: TeacherTopK) -> torch.Tensor:
    """Return the blend, token by token and from probabilities over the whole vocabulary."""
    total = torch.zeros(())
    for logits_V, target, ids, logprobs in zip(logits_NV, targets_N, teacher.ids_NK, teacher.logprobs_NK, strict=True):
        entropy = -logits_V.log_softmax(-1)[target]
        weights = {int(i): float(v) for i, v in zip(ids, logprobs, strict=True) if v > -torch.inf}
        if not weights:
            total = total + entropy
            continue
        p = torch.tensor(list(weights.values())).div(teacher.temperature).softmax(-1)
        q = (logits_V / teacher.temperature).softmax(-1)[list(weights)]
        divergence = (p * (p / q).log()).sum() * teacher.temperature**2
        total = total + (1 - teacher.weight) * entropy + teacher.weight * divergence
    return total


@pytest.mark.parametrize("chunk_logits", [50 * 4, 50 * 23])
def test_sum_loss_blend_equals_its_definition_from_whole_distributions(chunk_logits: int) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(23, 8, requires_grad=True), torch.randn(50, 8, requires_grad=True)
    targets, teacher = torch.randint(50, (23,)), make_teacher(23)
    expected = reference_blend(hidden @ weight.T, targets, teacher)
    expected_grads = torch.autograd.grad(expected, (hidden, weight))
    found = sum_loss(hidden, weight, None, targets, teacher=teacher, chunk_logits=chunk_logits)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, (hidden, weight)), expected_grads)


def test_sum_loss_student_that_agrees_with_the_teacher_has_no_divergence_and_no_gradient() -> None:
    logits = torch.randn(5, 50)
    logprobs, ids = logits.log_softmax(-1).topk(50)
    teacher = TeacherTopK(ids, logprobs, weight=1.0, temperature=1.0)
    hidden = logits.clone().requires_grad_()
    loss = sum_loss(hidden, torch.eye(50), None, torch.zeros(5).long(), teacher=teacher)
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-5)
    assert hidden.grad is not None
    assert hidden.grad.abs().max() < 1e-6


def test_sum_loss_candidates_beyond_the_students_vocabulary_are_left_out() -> None:
    hidden, weight, targets = torch.randn(4, 8), torch.randn(50, 8), torch.randint(50, (4,))
    known = TeacherTopK(torch.tensor([[3, 7]] * 4), torch.full((4, 2), -0.7), 0.5, 1.0)
    more = TeacherTopK(torch.tensor([[3, 50, 7]] * 4), torch.full((4, 3), -0.7), 0.5, 1.0)
    torch.testing.assert_close(
        sum_loss(hidden, weight, None, targets, teacher=more), sum_loss(hidden, weight, None, targets, teacher=known)
    )


def test_student_with_loss_blends_while_training_and_measures_cross_entropy_alone(tmp_path: Path) -> None:
    model = build(tmp_path, "llama")
    row = Row(np.array([3, 4], np.int32), np.array([5, 6], np.int32), np.array([5, 7, 6, 8], np.int32))
    row = replace(row, topk_logprobs=np.log(np.array([0.5, 0.25, 0.75, 0.125], np.float32)))
    student = StudentWithLoss(model, ObjectiveConfig(kl_weight=0.5))
    batch = collate_packs([[row]], 8, 0, with_topk=True)
    plain = StudentWithLoss(model)(*collate_packs([[row]], 8, 0).tensors())
    assert student.eval()(*batch.tensors()) == plain
    assert student.train()(*batch.tensors()) != plain


def test_sum_loss_in_chunks_bfloat16_sums_the_heads_gradient_in_float32() -> None:
    # 400 chunks of one token add 0.5 to the same weight: bfloat16 would stop growing at 128.
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    hidden = torch.ones(400, 1, dtype=torch.bfloat16)
    sum_loss(hidden, weight, None, torch.zeros(400).long(), chunk_logits=2).backward()
    assert weight.grad is not None
    assert weight.grad.flatten().tolist() == [-200.0, 200.0]


def test_sum_loss_in_chunks_of_a_frozen_head_gives_the_hidden_states_their_gradient() -> None:
    hidden, weight, targets = torch.randn(9, 4, requires_grad=True), torch.randn(7, 4), torch.randint(7, (9,))
    [expected] = torch.autograd.grad(sum_loss(hidden, weight, None, targets), hidden)
    [found] = torch.autograd.grad(2 * sum_loss(hidden, weight, None, targets, chunk_logits=14), hidden)
    torch.testing.assert_close(found, 2 * expected)
