"""What counts as a completion's answer, and when it is right."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.schema import VerifierName
from services.verifiers import final_answer, is_correct

pytestmark = pytest.mark.unit

EXACT = VerifierName.EXACT_ANSWER


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("\\boxed{5}", "5"),
        ("first \\boxed{4}, no: \\boxed{5}.", "5"),
        ("so \\boxed{\\frac{1}{2}} it is", "\\frac{1}{2}"),
        ("\\boxed{a_{b_{c}}} and 7", "a_{b_{c}}"),
        ("\\boxed{5} #### 6", "5"),
        ("12 apples\n#### 72", "72"),
        ("#### 1\n#### 2", "2"),
        ("#### -1,234.5 ", "-1,234.5"),
        ("It is 3, then 4, so 1,234.50 in all.", "1234.50"),
        ("The answer is 5.", "5"),
        ("minus five is -5", "-5"),
        ("7+5+0=12;4+8+1=13;3+2+1=6;632", "632"),
    ],
)
def test_final_answer_is_the_last_boxed_or_marked_or_number(completion: str, answer: str) -> None:
    assert final_answer(EXACT, completion) == answer


@pytest.mark.parametrize(
    "completion", ["", "I don't know.", "cut off in \\boxed{1", "#### ", "\\boxed{1} or \\boxed{2"]
)
def test_final_answer_that_is_not_stated_is_none(completion: str) -> None:
    assert final_answer(EXACT, completion) is None
    assert not is_correct(EXACT, completion, "1")


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("#### 1.50", "1.5"),
        ("#### 1.5", "1.50"),
        ("#### 1,234", "1234"),
        ("1234", "1,234"),
        ("#### $5", "5"),
        ("#### 5.", "5"),
        ("#### 007", "7"),
        ("\\boxed{1e3}", "1000"),
        ("\\boxed{ x + 1 }", "x+1"),
        ("#### Paris", " Paris."),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
    ],
)
def test_answer_of_the_same_value_is_correct(completion: str, answer: str) -> None:
    assert is_correct(EXACT, completion, answer)


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("#### 1.51", "1.5"),
        ("#### -5", "5"),
        ("#### paris", "Paris"),
        ("5 is not it, but 6", "5"),
        ("\\boxed{0.5}", "\\frac{1}{2}"),
        ("5", None),
        ("\\boxed{}", "5"),
        ("1\u00b2", "12"),
    ],
)
def test_answer_of_another_value_is_wrong(completion: str, answer: str | None) -> None:
    assert not is_correct(EXACT, completion, answer)


@given(st.integers(-(10**9), 10**9), st.text(alphabet="ab +=;.\n", max_size=30))
def test_last_number_of_a_text_is_its_answer(number: int, text: str) -> None:
    assert is_correct(EXACT, f"{text} {number:,}", str(number))
    assert not is_correct(EXACT, f"{text} {number:,}", str(number + 1))


@given(
    st.recursive(st.sampled_from(["x", "12", "\\frac"]), lambda inner: inner.map(lambda s: f"{{{s}}}y"), max_leaves=5)
)
def test_boxed_expression_keeps_its_braces_whole(expression: str) -> None:
    assert final_answer(EXACT, f"thus \\boxed{{{expression}}} and more {{}}") == expression


@pytest.mark.parametrize("completion", ["", "anything", "\\boxed{"])
def test_without_a_verifier_everything_is_correct(completion: str) -> None:
    assert final_answer(VerifierName.NONE, completion) == completion
    assert is_correct(VerifierName.NONE, completion, None)
    assert is_correct(VerifierName.NONE, completion, "5")


def test_number_that_starts_with_its_point_is_read_whole() -> None:
    assert is_correct(EXACT, "the probability is .5", "0.5")


def test_marked_answer_ends_with_its_line() -> None:
    assert is_correct(EXACT, "3 * 24 = 72\n#### 72\nI hope this helps!", "72")


@pytest.mark.parametrize(
    "answer",
    [
        "NaN",
        "sNaN",
        "Infinity",
        "1e400000",
    ],
)
def test_word_that_decimal_takes_for_a_number_is_judged_like_any_other(answer: str) -> None:
    assert not is_correct(EXACT, f"\\boxed{{{answer}}}", "5")
    assert is_correct(EXACT, f"\\boxed{{{answer}}}", answer)
