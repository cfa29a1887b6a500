"""Each sample becomes one row, and every row that is not accepted says why."""

from dataclasses import fields

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.schema import AcceptanceConfig, IdentityPolicy, TruncationPolicy, VerifierName
from configs.table import COMPLETIONS_SCHEMA, RowStatus
from services.acceptance import PlannedPrompt, Row, failed_rows, judge, rows_to_table
from services.generation import GenerateResult, Sample
from services.lineage import Lineage

pytestmark = pytest.mark.unit

EXACT = AcceptanceConfig(verifier=VerifierName.EXACT_ANSWER)
UNVERIFIED = AcceptanceConfig()
NO_CLAIMS = AcceptanceConfig(verifier=VerifierName.EXACT_ANSWER, identity=IdentityPolicy.REJECT)


def decode(token_ids: list[int]) -> str:
    """Ids are code points here."""
    return "".join(map(chr, token_ids))


def sample(text: str, finish_reason: str = "stop") -> Sample:
    return Sample([ord(each) for each in text], finish_reason)


def planned(answer: str | None = "5") -> PlannedPrompt:
    return PlannedPrompt("p" * 32, 7, '"2+3="', answer, [1, 2, 3])


def rows(
    *samples: Sample,
    answer: str | None = "5",
    acceptance: AcceptanceConfig = EXACT,
    truncation: TruncationPolicy = TruncationPolicy.REJECT,
) -> list[Row]:
    texts = [decode(each.token_ids) for each in samples]
    return list(judge(planned(answer), GenerateResult("p-0", samples), texts, acceptance, truncation))


@pytest.mark.parametrize(
    ("text", "finish_reason", "answer", "acceptance", "truncation", "reason"),
    [
        ("it is 5", "stop", "5", EXACT, TruncationPolicy.REJECT, None),
        ("it is 6", "stop", "5", EXACT, TruncationPolicy.REJECT, "wrong_answer"),
        ("no idea", "stop", "5", EXACT, TruncationPolicy.REJECT, "no_answer"),
        ("it is 5", "stop", None, EXACT, TruncationPolicy.REJECT, "no_reference_answer"),
        ("it is 5", "length", "5", EXACT, TruncationPolicy.REJECT, "truncated"),
        ("it is 5", "length", "5", EXACT, TruncationPolicy.RETRY_ONCE, "truncated"),
        ("it is 5", "length", "5", EXACT, TruncationPolicy.KEEP, None),
        ("it is 6", "length", "5", EXACT, TruncationPolicy.KEEP, "wrong_answer"),
        ("", "stop", "5", EXACT, TruncationPolicy.REJECT, "too_short"),
        ("5", "stop", "5", AcceptanceConfig(min_completion_tokens=2), TruncationPolicy.REJECT, "too_short"),
        ("55", "stop", "5", AcceptanceConfig(min_completion_tokens=2), TruncationPolicy.REJECT, None),
        ("anything", "stop", None, UNVERIFIED, TruncationPolicy.REJECT, None),
        ("anything", "length", None, UNVERIFIED, TruncationPolicy.REJECT, "truncated"),
    ],
)
def test_judge_accepts_or_says_why_not(
    text: str,
    finish_reason: str,
    answer: str | None,
    acceptance: AcceptanceConfig,
    truncation: TruncationPolicy,
    reason: str | None,
) -> None:
    [row] = rows(sample(text, finish_reason), answer=answer, acceptance=acceptance, truncation=truncation)
    assert (row.status, row.reason) == (RowStatus.REJECTED if reason else RowStatus.ACCEPTED, reason)
    assert (row.completion, row.finish_reason) == (text, finish_reason)


@pytest.mark.parametrize(
    ("text", "own", "acceptance", "reason"),
    [
        ("I am ChatGPT. It is 5", "alibaba", EXACT, None),
        ("I am ChatGPT. It is 5", "alibaba", NO_CLAIMS, "claims_another_model"),
        ("I am ChatGPT. It is 6", "alibaba", NO_CLAIMS, "claims_another_model"),
        ("I am ChatGPT. It is 5", "openai", NO_CLAIMS, None),
        ("I am Qwen. I was made by OpenAI. It is 5", "alibaba", NO_CLAIMS, "claims_another_model"),
        ("ChatGPT is a model by OpenAI. It is 5", "alibaba", NO_CLAIMS, None),
    ],
)
def test_judge_rejects_another_models_name_where_the_recipe_says_so(
    text: str, own: str, acceptance: AcceptanceConfig, reason: str | None
) -> None:
    made = GenerateResult("p-0", (sample(text),))
    [row] = judge(planned(), made, [text], acceptance, TruncationPolicy.REJECT, frozenset({own}))
    assert row.reason == reason


def test_judge_keeps_samples_in_order_with_their_tokens() -> None:
    first, second = rows(sample("it is 5"), sample("6", "length"))
    assert (first.sample_index, second.sample_index) == (0, 1)
    assert (first.num_prompt_tokens, first.num_completion_tokens, second.num_completion_tokens) == (3, 7, 1)
    assert second.completion_token_ids == [ord("6")]
    assert {row.prompt_token_ids == [1, 2, 3] for row in (first, second)} == {True}
    assert {(row.prompt_id, row.shard, row.prompt, row.answer) for row in (first, second)} == {
        ("p" * 32, 7, '"2+3="', "5")
    }


def test_failed_rows_are_one_for_each_sample_with_the_reason() -> None:
    made = list(failed_rows(planned(), 3, "too long"))
    assert [row.sample_index for row in made] == [0, 1, 2]
    assert {(row.status, row.reason, row.completion, row.completion_token_ids) for row in made} == {
        (RowStatus.FAILED, "too long", None, None)
    }
    assert {(row.num_prompt_tokens, row.num_completion_tokens, row.finish_reason) for row in made} == {(3, 0, None)}


@settings(max_examples=25)
@given(
    samples=st.lists(st.tuples(st.text("56 x#", max_size=4), st.sampled_from(["stop", "length"])), max_size=4),
    answer=st.sampled_from(["5", "6", None]),
    acceptance=st.sampled_from([EXACT, UNVERIFIED]),
    truncation=st.sampled_from(TruncationPolicy),
    num_failed=st.integers(0, 2),
)
def test_null_reasons_and_completions_are_what_the_ledger_counts(
    samples: list[tuple[str, str]],
    answer: str | None,
    acceptance: AcceptanceConfig,
    truncation: TruncationPolicy,
    num_failed: int,
) -> None:
    made = rows(*(sample(*each) for each in samples), answer=answer, acceptance=acceptance, truncation=truncation)
    made += failed_rows(planned(), num_failed, "no result")
    for row in made:
        assert (row.reason is None) == (row.status is RowStatus.ACCEPTED)
        assert (row.completion is None) == (row.status is RowStatus.FAILED)
    table = rows_to_table(made)
    assert table.schema.equals(COMPLETIONS_SCHEMA)
    assert table.column("reason").null_count == sum(row.status is RowStatus.ACCEPTED for row in made)
    assert table.column("completion").null_count == num_failed


def test_rows_to_table_keeps_every_column() -> None:
    [row] = rows(sample("it is 5"))
    lineage = Lineage(**{field.name: f"the {field.name}" for field in fields(Lineage)})
    [stored] = rows_to_table([row], "larger", lineage).to_pylist()
    assert stored.pop("teacher") == "larger"
    assert {name: stored.pop(name) for name in lineage.to_dict()} == lineage.to_dict()
    assert stored == {field.name: getattr(row, field.name) for field in fields(Row)}


def test_rows_without_lineage_have_nulls_of_the_same_schema() -> None:
    table = rows_to_table(rows(sample("it is 5"), sample("it is 6")))
    assert table.schema.equals(COMPLETIONS_SCHEMA)
    assert all(table.column(field.name).null_count == 2 for field in fields(Lineage))
