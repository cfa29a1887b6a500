"""Rows are asked for with shared prefixes together and the longest expected first; none is lost on the way."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.generation import GenerateRequest, GenerateResult, Sample
from services.order import SHARED_TOKENS, LengthEstimate, cut_calls, in_groups

pytestmark = pytest.mark.unit

FIRST, SECOND = list(range(SHARED_TOKENS)), list(range(100, 100 + SHARED_TOKENS))


def request(name: str, token_ids: list[int], n: int = 1) -> GenerateRequest:
    return GenerateRequest(name, token_ids, n, 8, 0.0, 1.0, 0, (), 0)


def result(*lengths: int) -> GenerateResult:
    return GenerateResult("x", tuple(Sample([0] * length, "stop") for length in lengths))


def flat(groups: list[list[GenerateRequest]]) -> str:
    return "".join(each.request_id for group in groups for each in group)


def test_in_groups_brings_shared_prefixes_together() -> None:
    prefixes = {"a": FIRST, "b": SECOND, "c": FIRST, "d": SECOND}
    requests = [request(name, [*prefix, place]) for place, (name, prefix) in enumerate(prefixes.items())]
    assert flat(in_groups(requests, LengthEstimate())) == "acbd"


def test_in_groups_takes_no_notice_of_what_all_share() -> None:
    """A system prompt, say: only what is shared beyond it makes a group."""
    requests = [request(name, [*FIRST, 9 - place]) for place, name in enumerate("abc")]
    assert flat(in_groups(requests, LengthEstimate())) == "abc"


def test_in_groups_asks_for_the_longest_expected_first() -> None:
    lengths = LengthEstimate()
    lengths.learn(request("x", [0] * 4), result(10))
    lengths.learn(request("x", [0] * 40), result(90, 110))
    requests = [request("a", [1] * 5), request("b", [2] * 1000), request("c", [3] * 50)]
    assert flat(in_groups(requests, lengths)) == "cab"


def test_expect_is_the_mean_of_prompts_of_that_size_for_all_samples() -> None:
    lengths = LengthEstimate()
    lengths.learn(request("x", [0] * 4), result(10, 20))
    lengths.learn(request("x", [0] * 7), result(30))
    assert lengths.expect(request("y", [0] * 5, n=2)) == 40
    assert lengths.expect(request("y", [0] * 8)) == 0


@given(st.lists(st.lists(st.integers(0, 2), max_size=40), max_size=12))
@settings(max_examples=50, deadline=None)
def test_in_groups_keeps_every_request(prompts: list[list[int]]) -> None:
    requests = [request(str(place), prompt) for place, prompt in enumerate(prompts)]
    ordered = [each for group in in_groups(requests, LengthEstimate()) for each in group]
    assert sorted(map(id, ordered)) == sorted(map(id, requests))


def groups(*sizes: int) -> list[list[GenerateRequest]]:
    return [[request(f"{place}-{row}", [1]) for row in range(size)] for place, size in enumerate(sizes)]


@pytest.mark.parametrize(
    ("sizes", "most", "cut"),
    [
        ([], 8, []),
        ([3, 3, 3], 8, [6, 3]),
        ([3, 6], 8, [8, 1]),  # a call of 3 would be tiny
        ([4, 6], 8, [4, 6]),
        ([8, 8], 8, [8, 8]),
        ([20, 3], 8, [8, 8, 7]),
        ([1] * 20, 8, [8, 8, 4]),
        ([2, 2], 1, [1, 1, 1, 1]),
    ],
)
def test_cut_calls_ends_calls_where_groups_end_unless_they_would_be_tiny(
    sizes: list[int], most: int, cut: list[int]
) -> None:
    assert [len(call) for call in cut_calls(groups(*sizes), most)] == cut


@given(st.lists(st.integers(1, 20), max_size=12), st.integers(1, 16))
@settings(max_examples=50, deadline=None)
def test_cut_calls_keeps_every_request_in_its_order_and_all_calls_but_one_half_full(
    sizes: list[int], most: int
) -> None:
    given_groups = groups(*sizes)
    calls = cut_calls(given_groups, most)
    assert [each for call in calls for each in call] == [each for group in given_groups for each in group]
    assert all(most <= 2 * len(call) <= 2 * most for call in calls[:-1])
