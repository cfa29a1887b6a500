"""Linear layers with frozen weights in 4 bits; `training.lora` imports it, and so bitsandbytes, only when asked to.

The format is that of QLoRA (Dettmers et al. 2023, sections 3 and 4): NF4 in blocks of 64, their scales in 8 bits.
"""

from typing import Any

import torch
from bitsandbytes.nn import Linear4bit, Params4bit


class FrozenLinear4bit(Linear4bit):
    """A linear layer whose weight is packed and never changes, so that checkpoints need not know how to unpack it."""

    def __init__(self, linear: torch.nn.Linear, compute_dtype: torch.dtype) -> None:
        super().__init__(
            linear.in_features, linear.out_features, bias=False, compute_dtype=compute_dtype, device="meta"
        )
        # Packed when it is moved to its device.
        self.weight = Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4", module=self)
        self.bias = linear.bias
        self.support_avx512bf16_for_cpu = False  # evaluation would repack the weight into what has no backward pass

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        torch.nn.Module._save_to_state_dict(self, destination, prefix, keep_vars)


def pack_linear_layers(layer: torch.nn.Module, compute_dtype: torch.dtype, device: torch.device) -> int:
    """Replace the linear layers below ``layer`` by packed ones on ``device``; return how many there were."""
    found = [(name, module) for name, module in layer.named_modules() if type(module) is torch.nn.Linear]
    for name, linear in found:
        layer.set_submodule(name, FrozenLinear4bit(linear, compute_dtype).to(device))
    return len(found)
