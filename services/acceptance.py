"""Turns what the teacher said of one prompt into rows of the completions table: accepted, rejected or failed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from configs.schema import ONLY_TEACHER, AcceptanceConfig, IdentityPolicy, TruncationPolicy, VerifierName
from configs.table import COMPLETIONS_SCHEMA, RowStatus
from services.claims import claimed_identity
from services.generation import GenerateResult, Sample
from services.lineage import NO_LINEAGE, Lineage
from services.verifiers import final_answer, is_correct


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the completions table, in the order of `COMPLETIONS_SCHEMA`, without its teacher and lineage.

    ``reason`` is None exactly for accepted rows and ``completion`` exactly for failed ones: the ledger is read from
    these null counts in the table's log.
    """

    prompt_id: str
    sample_index: int
    shard: int
    status: str
    reason: str | None
    prompt: str
    completion: str | None
    answer: str | None
    finish_reason: str | None
    num_prompt_tokens: int
    num_completion_tokens: int
    prompt_token_ids: list[int] | None
    completion_token_ids: list[int] | None
    completion_topk_ids: list[int] | None = None
    completion_topk_logprobs: list[float] | None = None


@dataclass(frozen=True, slots=True)
class PlannedPrompt:
    """One planned prompt as a client holds it: its place in the plan and its tokens."""

    prompt_id: str
    shard: int
    prompt: str
    answer: str | None
    token_ids: list[int]


def failed_rows(prompt: PlannedPrompt, num_samples: int, reason: str) -> Iterator[Row]:
    """All samples of a prompt that could not be made."""
    for index in range(num_samples):
        yield Row(
            prompt.prompt_id,
            index,
            prompt.shard,
            RowStatus.FAILED,
            reason,
            prompt.prompt,
            completion=None,
            answer=prompt.answer,
            finish_reason=None,
            num_prompt_tokens=len(prompt.token_ids),
            num_completion_tokens=0,
            prompt_token_ids=prompt.token_ids,
            completion_token_ids=None,
        )


def judge(
    prompt: PlannedPrompt,
    result: GenerateResult,
    completions: Sequence[str],
    acceptance: AcceptanceConfig,
    truncation: TruncationPolicy,
    own_makers: frozenset[str] = frozenset(),
) -> Iterator[Row]:
    """The rows of a prompt's samples, in order of their index; ``completions`` are the samples' texts.

    ``own_makers`` are those whose model the teacher may call itself.
    """
    for index, (sample, completion) in enumerate(zip(result.samples, completions, strict=True)):
        reason = _rejection(sample, completion, prompt.answer, acceptance, truncation, own_makers)
        yield Row(
            prompt.prompt_id,
            index,
            prompt.shard,
            RowStatus.ACCEPTED if reason is None else RowStatus.REJECTED,
            reason,
            prompt.prompt,
            completion=completion,
            answer=prompt.answer,
            finish_reason=sample.finish_reason,
            num_prompt_tokens=len(prompt.token_ids),
            num_completion_tokens=len(sample.token_ids),
            prompt_token_ids=prompt.token_ids,
            completion_token_ids=sample.token_ids,
            completion_topk_ids=sample.topk_ids,
            completion_topk_logprobs=sample.topk_logprobs,
        )


def rows_to_table(rows: list[Row], teacher: str = ONLY_TEACHER, lineage: Lineage = NO_LINEAGE) -> pa.Table:
    """One teacher's rows as an Arrow table with exactly the completions schema."""
    constants = {"teacher": teacher} | lineage.to_dict()
    own = [name for name in COMPLETIONS_SCHEMA.names if name not in constants]
    columns: dict[str, Any] = {name: [getattr(row, name) for row in rows] for name in own}
    columns |= {name: pa.repeat(pa.scalar(value, pa.string()), len(rows)) for name, value in constants.items()}
    return pa.table(columns, schema=COMPLETIONS_SCHEMA)


def _rejection(
    sample: Sample,
    completion: str,
    answer: str | None,
    acceptance: AcceptanceConfig,
    truncation: TruncationPolicy,
    own_makers: frozenset[str],
) -> str | None:
    if sample.finish_reason == "length" and truncation is not TruncationPolicy.KEEP:
        return "truncated"
    if len(sample.token_ids) < acceptance.min_completion_tokens:
        return "too_short"
    if acceptance.identity is IdentityPolicy.REJECT:
        claim = claimed_identity(completion, own_makers)
        if claim is not None and claim.maker not in own_makers:
            return "claims_another_model"
    if acceptance.verifier is VerifierName.NONE:
        return None
    if answer is None:
        return "no_reference_answer"
    if final_answer(acceptance.verifier, completion) is None:
        return "no_answer"
    return None if is_correct(acceptance.verifier, completion, answer) else "wrong_answer"
