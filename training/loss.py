"""The student with its loss, summed over loss tokens, without the logits of any other position.

The loss is the cross-entropy of the completion's tokens, or a blend with the divergence from the teacher's top
log-probabilities. Shapes: B packed sequences, T tokens each, D hidden size, V vocabulary, N loss tokens of the
micro-batch, K candidates of the teacher.
"""

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch.nn.functional import cross_entropy, linear
from transformers import PreTrainedModel

from configs.schema import LossKernel, ObjectiveConfig
from training import liger

# Logits of one chunk, 128 MiB in float32: large enough for full-speed matrix products, small beside the activations.
_CHUNK_LOGITS = 2**25


@dataclass(frozen=True, slots=True)
class LogitTransform:
    """What some architectures do to ``head(hidden)``: multiply by ``scale``, then bend within ±``softcap``.

    Cohere and Granite scale; Gemma caps (Gemma Team 2024, "Gemma 2", section 2).
    """

    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, config: Any) -> Self:
        """Read it from the configuration of a text model."""
        scale = getattr(config, "logit_scale", None) or 1.0
        return cls(
            scale=scale / (getattr(config, "logits_scaling", None) or 1.0),
            softcap=getattr(config, "final_logit_softcapping", None),
        )

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the logits as the model itself would."""
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


@dataclass(frozen=True, slots=True)
class TeacherTopK:
    """The teacher's top log-probabilities (nats) at each loss token; -inf fills up where there are fewer."""

    ids_NK: torch.Tensor
    logprobs_NK: torch.Tensor
    weight: float
    temperature: float

    def split(self, rows: int) -> list["TeacherTopK"]:
        """Return parts of ``rows`` loss tokens each."""
        parts = zip(torch.split(self.ids_NK, rows), torch.split(self.logprobs_NK, rows), strict=True)
        return [TeacherTopK(ids_NK, logprobs_NK, self.weight, self.temperature) for ids_NK, logprobs_NK in parts]


_PLAIN = LogitTransform()


class StudentWithLoss(torch.nn.Module):
    """A causal language model whose forward is its loss, so that FSDP2's root group holds head and embeddings.

    Were the head used outside the root's forward, its gradient would bypass FSDP2's hooks.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        objective: ObjectiveConfig | None = None,
        kernel: LossKernel = LossKernel.AUTO,
    ) -> None:
        super().__init__()
        self.model = model
        self.transform = LogitTransform.of(model.config.get_text_config())
        self.objective = objective or ObjectiveConfig()
        self.kernel = kernel

    def forward(
        self,
        input_ids_BT: torch.Tensor,
        position_ids_BT: torch.Tensor,
        loss_index_N: torch.Tensor,
        targets_N: torch.Tensor,
        topk_ids_NK: torch.Tensor | None = None,
        topk_logprobs_NK: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the summed loss (float32 scalar) of ``targets_N``; in evaluation mode its cross-entropy alone.

        ``loss_index_N`` are the positions, in the flattened batch, whose hidden state predicts the target. Positions
        start at 0 with each document: the model derives from that which tokens may attend to each other, which it
        does only without an attention mask and without a cache.
        """
        hidden_BTD = self.model.base_model(
            input_ids=input_ids_BT, position_ids=position_ids_BT, attention_mask=None, use_cache=False
        ).last_hidden_state
        hidden_ND = hidden_BTD.flatten(0, 1)[loss_index_N]
        head = self.model.get_output_embeddings()
        transform = self.transform
        if self.kernel is LossKernel.LIGER and len(targets_N):  # its kernels divide by the number of targets
            return liger.sum_cross_entropy(
                hidden_ND, head.weight, head.bias, targets_N, transform.scale, transform.softcap
            )
        teacher = None
        if self.training and topk_ids_NK is not None and topk_logprobs_NK is not None:
            objective = self.objective
            teacher = TeacherTopK(topk_ids_NK, topk_logprobs_NK, objective.kl_weight, objective.kl_temperature)
        return sum_loss(hidden_ND, head.weight, head.bias, targets_N, transform, teacher)


def sum_loss(
    hidden_ND: torch.Tensor,
    weight_VD: torch.Tensor,
    bias_V: torch.Tensor | None,
    targets_N: torch.Tensor,
    transform: LogitTransform = _PLAIN,
    teacher: TeacherTopK | None = None,
    chunk_logits: int = _CHUNK_LOGITS,
) -> torch.Tensor:
    """Return the summed loss (float32 scalar), holding about ``chunk_logits`` logits at a time.

    Logits are computed in the dtype of the hidden states and summed up in float32. torch's own chunked
    `linear_cross_entropy` returns bfloat16 for bfloat16 inputs: a loss rounded to three digits, and a gradient scaled
    by a rounded factor.
    """
    rows = max(1, chunk_logits // weight_VD.shape[0])
    if len(targets_N) <= rows:
        return _chunk_loss(hidden_ND, weight_VD, bias_V, targets_N, transform, teacher)
    apply: Any = _ChunkedLoss.apply  # torch leaves it untyped
    loss: torch.Tensor = apply(hidden_ND, weight_VD, bias_V, targets_N, transform, teacher, rows)
    return loss


class _ChunkedLoss(torch.autograd.Function):
    """The loss of one chunk after another, each with its gradient, so that no logits are computed twice or kept.

    The backward pass scales what the forward pass found (as in Hsu et al. 2024, "Liger Kernel", section 3.2). The
    gradient of the head is summed up in float32.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        bias_V: torch.Tensor | None,
        targets_N: torch.Tensor,
        transform: LogitTransform,
        teacher: TeacherTopK | None,
        rows: int,
    ) -> torch.Tensor:
        total = torch.zeros((), device=hidden_ND.device)
        wants_hidden, *wants_head = ctx.needs_input_grad[:3]
        hidden_grads: list[torch.Tensor] = []
        leaves: list[Any]
        head_grads = [
            torch.zeros_like(tensor, dtype=torch.float32) if wanted and tensor is not None else None
            for tensor, wanted in zip((weight_VD, bias_V), wants_head, strict=True)
        ]
        hiddens, targets = torch.split(hidden_ND, rows), torch.split(targets_N, rows)
        teachers = [None] * len(targets) if teacher is None else teacher.split(rows)
        for hidden, target, part in zip(hiddens, targets, teachers, strict=True):
            with torch.enable_grad():
                leaves = [
                    None if tensor is None else tensor.detach().requires_grad_(wanted)
                    for tensor, wanted in zip((hidden, weight_VD, bias_V), ctx.needs_input_grad, strict=False)
                ]
                loss = _chunk_loss(leaves[0], leaves[1], leaves[2], target, transform, part)
            total += loss.detach()
            learnt = [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]
            grads = iter(torch.autograd.grad(loss, learnt) if learnt else ())
            if wants_hidden:
                hidden_grads.append(next(grads))
            for sum_ in head_grads:
                if sum_ is not None:
                    sum_ += next(grads)
        ctx.save_for_backward(torch.cat(hidden_grads) if hidden_grads else None, *head_grads)
        ctx.dtype = weight_VD.dtype
        return total

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, *head = ctx.saved_tensors
        scaled = (None if tensor is None else (tensor * grad).to(ctx.dtype) for tensor in (hidden, *head))
        return (*scaled, None, None, None, None)


def _chunk_loss(
    hidden_ND: torch.Tensor,
    weight_VD: torch.Tensor,
    bias_V: torch.Tensor | None,
    targets_N: torch.Tensor,
    transform: LogitTransform,
    teacher: TeacherTopK | None,
) -> torch.Tensor:
    logits_NV = transform(linear(hidden_ND, weight_VD, bias_V).float())
    if teacher is None:
        return cross_entropy(logits_NV, targets_N, reduction="sum")
    cross_entropy_N = cross_entropy(logits_NV, targets_N, reduction="none")
    divergence_N, is_known_N = _divergence(logits_NV, teacher)
    weight_N = teacher.weight * is_known_N
    return ((1 - weight_N) * cross_entropy_N + weight_N * divergence_N).sum()


def _divergence(logits_NV: torch.Tensor, teacher: TeacherTopK) -> tuple[torch.Tensor, torch.Tensor]:
    """Return KL(teacher || student) by token, and where the teacher's probabilities are known.

    The teacher's candidates are scaled to a sum of 1, the student's probabilities are those over the whole vocabulary.
    Both are taken at the temperature, and the square of it keeps the gradient's size (Hinton et al. 2015, "Distilling
    the Knowledge in a Neural Network", section 2).
    """
    is_candidate_NK = torch.isfinite(teacher.logprobs_NK) & (teacher.ids_NK < logits_NV.shape[1])
    is_known_N = is_candidate_NK.any(-1)
    # Without any candidate all are taken, to have finite numbers for what is multiplied by 0.
    is_left_out_NK = ~is_candidate_NK & is_known_N[:, None]
    scaled_NK = torch.where(is_candidate_NK, teacher.logprobs_NK / teacher.temperature, 0.0)
    p_NK = scaled_NK.masked_fill(is_left_out_NK, -torch.inf).softmax(-1)
    entropy_N = -torch.special.xlogy(p_NK, p_NK).sum(-1)
    logits_NV = logits_NV / teacher.temperature
    ids_NK = torch.where(is_candidate_NK, teacher.ids_NK, 0)
    log_q_NK = logits_NV.gather(1, ids_NK) - logits_NV.logsumexp(-1, keepdim=True)
    divergence_N = -(p_NK * log_q_NK).sum(-1) - entropy_N
    return divergence_N * teacher.temperature**2, is_known_N
