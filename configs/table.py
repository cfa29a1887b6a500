"""The schema of the two Delta tables of a run: the contract between services/ (writes) and training/ (reads).

One row of the completions table is one ``(prompt_id, sample_index)`` in one final state. Training reads rows whose
``status`` is accepted, and of them ``prompt_token_ids`` + ``completion_token_ids`` or ``prompt`` + ``completion``.
"""

from enum import StrEnum

import pyarrow as pa


class RowStatus(StrEnum):
    """Final state of a row; a planned row that has none yet is pending."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    FAILED = "failed"


# Delta calls the item of a list "element"; the same name here spares a cast on every write.
TOKEN_IDS = pa.list_(pa.field("element", pa.int32(), nullable=False))

LOGPROBS = pa.list_(pa.field("element", pa.float32(), nullable=False))

PROMPTS_SCHEMA = pa.schema(
    [
        pa.field("prompt_id", pa.string(), nullable=False),  # 32 hex digits, a hash of the prompt's content alone
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),  # JSON: a list of {role, content}, or a plain string
        pa.field("answer", pa.string()),  # reference answer, where the source has one
        pa.field("error", pa.string()),  # why the source's line could not be read; such a row ends as failed
        pa.field("teacher", pa.string()),  # which of several teachers answers, the same for all rows of a shard
    ]
)

COMPLETIONS_SCHEMA = pa.schema(
    [
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("sample_index", pa.int32(), nullable=False),
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("status", pa.string(), nullable=False),  # RowStatus
        pa.field("reason", pa.string()),  # why it was rejected or failed
        pa.field("prompt", pa.string(), nullable=False),  # as in PROMPTS_SCHEMA
        pa.field("completion", pa.string()),
        pa.field("answer", pa.string()),
        pa.field("finish_reason", pa.string()),  # vLLM's: stop, length
        pa.field("num_prompt_tokens", pa.int32(), nullable=False),
        pa.field("num_completion_tokens", pa.int32(), nullable=False),
        pa.field("prompt_token_ids", TOKEN_IDS),
        pa.field("completion_token_ids", TOKEN_IDS),
        # The teacher's likeliest tokens at each place of the completion, likeliest first, and their log-probabilities
        # (nats): as many a token as sampling.top_logprobs, one after another; null when that is 0.
        pa.field("completion_topk_ids", TOKEN_IDS),
        pa.field("completion_topk_logprobs", LOGPROBS),
        pa.field("teacher", pa.string()),  # its name in the recipe's teachers; "teacher" where there is one
    ]
)
