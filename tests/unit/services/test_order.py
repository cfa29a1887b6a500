"""Rows are asked for with shared prefixes together and the longest expected first; none is lost on the way."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.generation import GenerateRequest, GenerateResult, Sample
from services.order import SHARED_TOKENS, LengthEstimate, in_order

pytestmark = pytest.mark.unit

FIRST, SECOND = list(range(SHARED_TOKENS)), list(range(100, 100 + SHARED_TOKENS))


def request(name: str, token_ids: list[int], n: int = 1) -> GenerateRequest:
    return GenerateRequest(name, token_ids, n, 8, 0.0, 1.0, 0, (), 0)


def result(*lengths: int) -> GenerateResult:
    return GenerateResult("x", tuple(Sample([0] * length, "stop") for length in lengths))


def names(requests: list[GenerateRequest]) -> str:
    return "".join(each.request_id for each in requests)


def test_in_order_brings_shared_prefixes_together() -> None:
    prefixes = {"a": FIRST, "b": SECOND, "c": FIRST, "d": SECOND}
    requests = [request(name, [*prefix, place]) for place, (name, prefix) in enumerate(prefixes.items())]
    assert names(in_order(requests, LengthEstimate())) == "acbd"


def test_in_order_takes_no_notice_of_what_all_share() -> None:
    """A system prompt, say: only what is shared beyond it makes a group."""
    requests = [request(name, [*FIRST, 9 - place]) for place, name in enumerate("abc")]
    assert names(in_order(requests, LengthEstimate())) == "abc"


def test_in_order_asks_for_the_longest_expected_first() -> None:
    lengths = LengthEstimate()
    lengths.learn(request("x", [0] * 4), result(10))
    lengths.learn(request("x", [0] * 40), result(90, 110))
    requests = [request("a", [1] * 5), request("b", [2] * 1000), request("c", [3] * 50)]
    assert names(in_order(requests, lengths)) == "cab"


def test_expect_is_the_mean_of_prompts_of_that_size_for_all_samples() -> None:
    lengths = LengthEstimate()
    lengths.learn(request("x", [0] * 4), result(10, 20))
    lengths.learn(request("x", [0] * 7), result(30))
    assert lengths.expect(request("y", [0] * 5, n=2)) == 40
    assert lengths.expect(request("y", [0] * 8)) == 0


@given(st.lists(st.lists(st.integers(0, 2), max_size=40), max_size=12))
@settings(max_examples=50, deadline=None)
def test_in_order_keeps_every_request(prompts: list[list[int]]) -> None:
    requests = [request(str(place), prompt) for place, prompt in enumerate(prompts)]
    ordered = in_order(requests, LengthEstimate())
    assert sorted(map(id, ordered)) == sorted(map(id, requests))
