"""The student with its loss: cross-entropy summed over loss tokens, without the logits of any other position.

Shapes: B packed sequences, T tokens each, D hidden size, V vocabulary, N loss tokens of the micro-batch.
"""

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch.nn.functional import cross_entropy, linear
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

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


_PLAIN = LogitTransform()


class StudentWithLoss(torch.nn.Module):
    """A causal language model whose forward is its loss, so that FSDP2's root group holds head and embeddings.

    Were the head used outside the root's forward, its gradient would bypass FSDP2's hooks.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.transform = LogitTransform.of(model.config.get_text_config())

    def forward(
        self,
        input_ids_BT: torch.Tensor,
        position_ids_BT: torch.Tensor,
        loss_index_N: torch.Tensor,
        targets_N: torch.Tensor,
    ) -> torch.Tensor:
        """Return the summed cross-entropy (float32 scalar) of ``targets_N``.

        ``loss_index_N`` are the positions, in the flattened batch, whose hidden state predicts the target. Positions
        start at 0 with each document: the model derives from that which tokens may attend to each other, which it
        does only without an attention mask and without a cache.
        """
        hidden_BTD = self.model.base_model(
            input_ids=input_ids_BT, position_ids=position_ids_BT, attention_mask=None, use_cache=False
        ).last_hidden_state
        hidden_ND = hidden_BTD.flatten(0, 1)[loss_index_N]
        head = self.model.get_output_embeddings()
        return sum_cross_entropy(hidden_ND, head.weight, head.bias, targets_N, self.transform)


def sum_cross_entropy(
    hidden_ND: torch.Tensor,
    weight_VD: torch.Tensor,
    bias_V: torch.Tensor | None,
    targets_N: torch.Tensor,
    transform: LogitTransform = _PLAIN,
    chunk_logits: int = _CHUNK_LOGITS,
) -> torch.Tensor:
    """Return the summed cross-entropy (float32 scalar), holding about ``chunk_logits`` logits at a time.

    Logits are computed in the dtype of the hidden states and summed up in float32. torch's own chunked
    `linear_cross_entropy` returns bfloat16 for bfloat16 inputs: a loss rounded to three digits, and a gradient scaled
    by a rounded factor.
    """
    rows = max(1, chunk_logits // weight_VD.shape[0])
    if len(targets_N) <= rows:
        return _chunk_loss(hidden_ND, weight_VD, bias_V, targets_N, transform)
    losses = [
        checkpoint(_chunk_loss, hidden, weight_VD, bias_V, targets, transform, use_reentrant=False)
        for hidden, targets in zip(torch.split(hidden_ND, rows), torch.split(targets_N, rows), strict=True)
    ]
    return torch.stack(losses).sum()


def _chunk_loss(
    hidden_ND: torch.Tensor,
    weight_VD: torch.Tensor,
    bias_V: torch.Tensor | None,
    targets_N: torch.Tensor,
    transform: LogitTransform,
) -> torch.Tensor:
    return cross_entropy(transform(linear(hidden_ND, weight_VD, bias_V).float()), targets_N, reduction="sum")
