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
        # Lineage: the same for all rows of a file, so that Parquet's dictionaries hold each value once a file. Ids are
        # of the licence policy's entries; where several count, they are joined by " AND ".
        pa.field("teacher_repo", pa.string()),  # repository or directory
        pa.field("teacher_revision", pa.string()),  # as the recipe names it; null without one
        pa.field("teacher_license", pa.string()),  # the policy's entries; null where only a waiver allows it
        pa.field("terms_id", pa.string()),  # terms of the services in between; null where there are none
        pa.field("prompt_source", pa.string()),
        pa.field("prompt_license", pa.string()),
        pa.field("sampling", pa.string()),  # JSON, the seed included
        pa.field("engine", pa.string()),  # 16 hex digits: vLLM's version and configuration
        pa.field("template", pa.string()),  # 16 hex digits: the chat template and its arguments
        pa.field("decision", pa.string()),  # verdict@policy, 16 hex digits of the policy's digest
    ]
)

# What the policy decides on; rows that are alike in these are allowed or refused together.
LICENSED_COLUMNS = (
    "teacher_repo",
    "teacher_revision",
    "teacher_license",
    "terms_id",
    "prompt_source",
    "prompt_license",
)

LICENSES_JOINED = " AND "  # between ids that all count, as SPDX has it

SPEC_KEY = "stillhouse.generation_spec"  # of the Parquet footer: JSON of all that the file's rows were made by

COMMITTED_DIGESTS = "stillhouse.sha256"  # of a commit's information in the log: JSON, digest by path of its files
