"""Marks the rows of an engine's batch as their next tokens are due. Knows tensors and token lists, not vLLM.

A row's mark follows from the key, its seed and its own tokens alone, so a row is the same in any batch and replica
and after a preemption. Its first ``context_tokens`` tokens are drawn as ever, so that answers to different
prompts do not all begin with the key's favourite; so is a token after a context that the row had before, which keeps a
row from running in circles. Shapes: N rows that are marked, B rows of the batch, V vocabulary.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from configs.watermark import WatermarkKind, WatermarkScheme
from services.watermark.key import WatermarkKey
from services.watermark.marks import ContextSeeds, choose_gumbel, favour_green, pack, uniforms

# Numbers drawn at a time, 32 MiB: vLLM has given the rest of a GPU's memory to its cache.
_CHUNK = 1 << 22

# Leaves of logits (N, V) the k likeliest (N,), None for all, and the nucleus p (N,), None for all; others become -inf.
Truncate = Callable[[torch.Tensor, torch.Tensor | None, torch.Tensor | None], torch.Tensor]


@dataclass(slots=True)
class MarkedRow:
    """One sample that is being written. ``output_ids`` is the engine's own list, which grows between two steps.

    ``top_k`` 0 and ``top_p`` 1 keep all tokens.
    """

    output_ids: list[int]
    seed: int
    top_k: int = 0
    top_p: float = 1.0
    _used: set[bytes] = field(default_factory=set)
    _num_known: int = 0

    def next_context(self, width: int) -> bytes | None:
        """What the token that is due follows; None where it is not to be marked."""
        ids = self.output_ids
        for end in range(max(self._num_known, width), len(ids)):
            self._used.add(pack(ids[end - width : end]))
        self._num_known = len(ids)
        if len(ids) < width:
            return None
        context = pack(ids[len(ids) - width :])
        return None if context in self._used else context


class Marker:
    """Marks logits under one key and scheme."""

    def __init__(self, key: WatermarkKey, scheme: WatermarkScheme, device: torch.device, truncate: Truncate) -> None:
        self._scheme = scheme
        self._device = device
        self._truncate = truncate
        self._channels = [ContextSeeds(key, channel) for channel in range(scheme.channels)]

    def mark(self, logits_BV: torch.Tensor, rows: Mapping[int, MarkedRow]) -> torch.Tensor:
        """Mark in place the rows at their places in the batch, after temperature and before top-k and top-p."""
        places, seeds = list[int](), list[int]()
        for place, row in rows.items():
            if (context := row.next_context(self._scheme.context_tokens)) is not None:
                places.append(place)
                # Samples of a prompt have seeds in a row, so up to as many as there are channels differ in theirs.
                seeds.append(self._channels[row.seed % len(self._channels)].seed(context))
        step = max(1, _CHUNK // logits_BV.shape[1])
        for start in range(0, len(places), step):
            part = places[start : start + step]
            self._mark_rows(logits_BV, part, seeds[start : start + step], [rows[place] for place in part])
        return logits_BV

    def _mark_rows(self, logits_BV: torch.Tensor, places: list[int], seeds: list[int], rows: list[MarkedRow]) -> None:
        places_N = torch.tensor(places, device=self._device)
        seeds_N = torch.tensor(seeds, dtype=torch.int64, device=self._device)
        uniforms_NV = uniforms(seeds_N, torch.arange(logits_BV.shape[1], device=self._device)[None])
        if self._scheme.kind is WatermarkKind.GREEN_LIST:
            logits_BV[places_N] = favour_green(logits_BV[places_N], uniforms_NV, self._scheme)
            return
        # The engine's dice are left one token to fall on, which has to be one that it would have let pass.
        chosen_N = choose_gumbel(self._truncate_rows(logits_BV[places_N], rows), uniforms_NV)
        logits_BV[places_N] = float("-inf")
        logits_BV[places_N, chosen_N] = 0.0

    def _truncate_rows(self, logits_NV: torch.Tensor, rows: list[MarkedRow]) -> torch.Tensor:
        vocabulary = logits_NV.shape[1]
        top_k = [row.top_k if 0 < row.top_k < vocabulary else vocabulary for row in rows]
        top_p = [row.top_p for row in rows]
        k_N = torch.tensor(top_k, dtype=torch.int32, device=self._device) if min(top_k) < vocabulary else None
        p_N = torch.tensor(top_p, device=self._device) if min(top_p) < 1 else None
        return logits_NV if k_N is None and p_N is None else self._truncate(logits_NV, k_N, p_N)
