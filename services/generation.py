"""The records that travel between the clients and the teacher: plain data, picklable, light to import.

They have no slots: pickle restores a frozen dataclass with slots field by field in Python, which is ten times as slow.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class GenerateRequest:
    """One prompt to be completed ``n`` times.

    ``seed`` is the seed of sample 0; sample *i* uses ``seed + i``, so a row is the same whoever makes it.
    """

    request_id: str
    prompt_token_ids: list[int]
    n: int
    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    stop: tuple[str, ...]
    seed: int
    top_logprobs: int = 0


@dataclass(frozen=True)
class Sample:
    """One completion: its token ids (the end-of-sequence token included) and vLLM's finish reason.

    ``topk_ids`` and ``topk_logprobs`` (nats) are the ``top_logprobs`` likeliest tokens at each place, likeliest first,
    one place after another; None where none were asked for.
    """

    token_ids: list[int]
    finish_reason: str
    topk_ids: list[int] | None = None
    topk_logprobs: list[float] | None = None


@dataclass(frozen=True)
class GenerateResult:
    """What became of one request: either ``n`` samples in order, or the engine's permanent refusal of this prompt."""

    request_id: str
    samples: tuple[Sample, ...] = ()
    error: str | None = None


@dataclass(frozen=True)
class EngineDescription:
    """The engine configuration as vLLM resolved it, read back after start-up.

    ``speculative_config`` has its ``method``, ``model`` and ``num_speculative_tokens``; None decodes token by token.
    """

    engine: str
    vllm_version: str
    model: str
    dtype: str
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    enable_prefix_caching: bool
    enable_chunked_prefill: bool
    quantization: str | None
    speculative_config: dict[str, Any] | None
    tensor_parallel_size: int
    pipeline_parallel_size: int
    vocab_size: int
