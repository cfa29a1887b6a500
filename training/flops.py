"""Floating-point operations of a training step, to say which part of the devices' peak is put to use (MFU).

Counted is what the mathematics needs: multiplications and additions of the matrices, forward and backward, and
attention between tokens that may see each other. What is recomputed to save memory does not count.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from configs.schema import TrainingDtype

# Dense bfloat16 operations per second with float32 sums, from NVIDIA's and AMD's data sheets; the first name found in
# the device's own wins.
_BFLOAT16_PEAKS = {
    "GB300": 2500e12,
    "B300": 2500e12,
    "GB200": 2500e12,
    "B200": 2250e12,
    "GH200": 989e12,
    "H200 NVL": 835e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H20": 148e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "A40": 150e12,
    "A10G": 70e12,
    "A10": 125e12,
    "RTX 5090": 210e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "MI355X": 2500e12,
    "MI325X": 1307e12,
    "MI300X": 1307e12,
    "MI250X": 383e12,
}


@dataclass(frozen=True, slots=True)
class ModelFlops:
    """Operations of forward and backward: for each token, each loss token, and each pair of tokens that attends.

    A weight costs 6 per token (2 forward, 2 for the input's gradient, 2 for its own; Kaplan et al. 2020, 2001.08361),
    a frozen one 4. A pair costs 12 per head and dimension of head in each layer (Chowdhery et al. 2022, 2204.02311,
    appendix B, which counts all pairs; causal attention has about half).
    """

    per_token: float
    per_loss_token: float
    per_pair: float
    """Of layers that attend to the whole document."""
    per_window_pair: float
    """Of layers that attend to the last ``window`` tokens."""
    window: int

    def of_step(self, lengths: npt.NDArray[np.int32], num_loss_tokens: int) -> float:
        """Return the operations of a step whose documents have ``lengths`` tokens."""
        result = self.per_token * float(lengths.sum()) + self.per_loss_token * num_loss_tokens
        if self.per_pair:
            result += self.per_pair * _count_pairs(lengths)
        if self.per_window_pair:
            result += self.per_window_pair * _count_pairs(lengths, self.window)
        return result


def count_flops(model: PreTrainedModel) -> ModelFlops:
    """Return the operations of ``model``; of a mixture of experts those of the experts that a token goes to."""
    config: Any = model.config.get_text_config()
    head = model.get_output_embeddings()
    # Embeddings are looked up, not multiplied with; a head that shares their weight is counted by itself.
    lookups = [module for module in model.modules() if isinstance(module, torch.nn.Embedding) or module is head]
    aside = {id(module.weight) for module in lookups}
    body = sum(
        _flops_of(parameter) * _active_part(name, config)
        for name, parameter in model.named_parameters()
        if id(parameter) not in aside and parameter.ndim >= 2
    )
    per_pair = 12.0 * _attention_width(config)
    window = getattr(config, "sliding_window", None) or 0
    usual = "sliding_attention" if window else "full_attention"
    kinds = getattr(config, "layer_types", None) or [usual] * config.num_hidden_layers
    num_window_layers = kinds.count("sliding_attention") if window else 0
    num_full_layers = kinds.count("full_attention") + (0 if window else kinds.count("sliding_attention"))
    return ModelFlops(
        per_token=body,
        per_loss_token=0.0 if head is None else _flops_of(head.weight),
        per_pair=per_pair * num_full_layers,
        per_window_pair=per_pair * num_window_layers,
        window=window,
    )


def peak_flops(device: torch.device, dtype: TrainingDtype) -> float | None:
    """Return what ``device`` can do in ``dtype`` (operations/s); None where that is not known, as of CPUs."""
    if device.type != "cuda" or dtype is not TrainingDtype.BFLOAT16:
        return None
    return find_peak(torch.cuda.get_device_name(device))


def find_peak(name: str) -> float | None:
    """Return the peak of the device that calls itself ``name`` (operations/s)."""
    return next((peak for known, peak in _BFLOAT16_PEAKS.items() if known in name), None)


def _flops_of(parameter: torch.Tensor) -> float:
    num_weights = parameter.numel() * (1 if parameter.is_floating_point() else 2)  # a byte holds two in 4 bits
    return (6.0 if parameter.requires_grad else 4.0) * num_weights


def _attention_width(config: Any) -> float:
    """Return heads times dimensions of a head; 0 for an architecture without attention."""
    num_heads = getattr(config, "num_attention_heads", None) or 0
    if num_heads and getattr(config, "v_head_dim", None):  # latent attention: keys and values differ
        return num_heads * (config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim) / 2
    return num_heads * (getattr(config, "head_dim", None) or config.hidden_size // max(num_heads, 1))


def _active_part(name: str, config: Any) -> float:
    if ".experts." not in name:
        return 1.0
    num_experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    return config.num_experts_per_tok / num_experts if num_experts else 1.0


def _count_pairs(lengths: npt.NDArray[np.int32], window: int | None = None) -> float:
    n = lengths.astype(np.float64)
    seen = n if window is None else np.minimum(n, window)
    return float((seen * (seen + 1) / 2 + (n - seen) * seen).sum())
