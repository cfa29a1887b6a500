"""The mark inside vLLM: a logits processor that the engine loads by name, in whichever process samples.

vLLM 0.29 has no watermark of its own. `services.engine_settings` names this class where a recipe asks for a mark;
nothing else imports it, as it needs vLLM.
"""

from typing import Any

import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

from configs.watermark import WatermarkConfig
from services.engine_settings import MARKING_SETTINGS
from services.watermark.key import load_key
from services.watermark.marker import MarkedRow, Marker

GREEDY_BELOW = 1e-5  # temperatures that vLLM takes for greedy


class WatermarkProcessor(LogitsProcessor):
    """Marks every row that is drawn. Raises `UserError` where the key is not there or is another one."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        config = WatermarkConfig(**vllm_config.additional_config[MARKING_SETTINGS])
        key = load_key(config.key_env, config.key_file, config.key_id)
        self._marker = Marker(key, config, device, apply_top_k_top_p)
        self._rows: dict[int, MarkedRow] = {}

    def is_argmax_invariant(self) -> bool:
        """True has it applied after the temperature, and to rows that are drawn alone."""
        return True

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the rows through the batch: in, out, and from place to place."""
        process_dict_updates(self._rows, batch_update, _new_row)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Mark the batch's logits (B, V) in place."""
        return self._marker.mark(logits, self._rows) if self._rows else logits


def _new_row(params: SamplingParams, _: list[int] | None, output_ids: list[int]) -> MarkedRow | None:
    if params.temperature < GREEDY_BELOW:
        return None
    # Whoever asks over HTTP may give no seed; such rows share the first channel.
    return MarkedRow(output_ids, params.seed or 0, params.top_k, params.top_p)
