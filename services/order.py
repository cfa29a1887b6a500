"""In which order and calls a client asks for the rows that it holds: shared prefixes together, longest expected first.

Neighbours that share a prefix are in the engine at the same time, where its cache computes the prefix once. Long rows
that begin first leave no tail in which the engine decodes a few rows alone; what is expected is learnt from the rows
that came back, by the length of their prompts.
"""

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

from services.generation import GenerateRequest, GenerateResult

# Tokens that two prompts must share beyond what all prompts of the shard do, for a prefix to be worth keeping together:
# a block of vLLM's cache on a GPU is 16 tokens, on a CPU 32.
SHARED_TOKENS = 16


class LengthEstimate:
    """Mean tokens of a row by the size of its prompt, in powers of two."""

    def __init__(self) -> None:
        self._rows: defaultdict[int, int] = defaultdict(int)
        self._tokens: defaultdict[int, int] = defaultdict(int)

    def learn(self, request: GenerateRequest, result: GenerateResult) -> None:
        """Count a row that came back."""
        size = len(request.prompt_token_ids).bit_length()
        self._rows[size] += len(result.samples)
        self._tokens[size] += sum(len(sample.token_ids) for sample in result.samples)

    def expect(self, request: GenerateRequest) -> float:
        """Tokens expected of all samples of a request; 0 for a size that has not been seen, so that it waits."""
        size = len(request.prompt_token_ids).bit_length()
        return request.n * self._tokens[size] / self._rows[size] if self._rows[size] else 0.0


def in_groups(requests: Sequence[GenerateRequest], lengths: LengthEstimate) -> list[list[GenerateRequest]]:
    """The same requests, those that share a prefix in one group; equal expectations stay as they are.

    Sorted by their tokens, requests with a common prefix are neighbours, however long it is. Groups of them follow each
    other by the mean length expected of their rows.
    """
    places = sorted(range(len(requests)), key=lambda place: requests[place].prompt_token_ids)
    prompts = [requests[place].prompt_token_ids for place in places]
    shared = [_count_shared(first, second) for first, second in pairwise(prompts)]
    least = min(shared, default=0) + SHARED_TOKENS
    groups: list[list[int]] = []
    for number, place in enumerate(places):
        if number and shared[number - 1] >= least:
            groups[-1].append(place)
        else:
            groups.append([place])
    groups.sort(key=lambda group: (-_mean([lengths.expect(requests[place]) for place in group]), min(group)))
    return [[requests[place] for place in group] for group in groups]


def cut_calls(groups: Sequence[Sequence[GenerateRequest]], most: int) -> list[list[GenerateRequest]]:
    """All requests in their order, in calls of at most ``most`` that end where a group does.

    A call goes to one replica, and only there is a prefix computed once. A group that does not fit into what is left of
    a call begins the next one, unless the call would be less than half full: a call costs the same whatever is in it.

    Example: groups of 3, 3 and 3 requests in calls of 8 at most are calls of 6 and 3; of 3 and 6 requests, 8 and 1.
    """
    calls: list[list[GenerateRequest]] = []
    call: list[GenerateRequest] = []
    for group in groups:
        if len(call) + len(group) > most and 2 * len(call) >= most:
            calls.append(call)
            call = []
        call.extend(group)
        while len(call) > most:
            calls.append(call[:most])
            call = call[most:]
    return [*calls, call] if call else calls


def _count_shared(first: list[int], second: list[int]) -> int:
    """Tokens of the common prefix, by bisection: slices are compared at the speed of C."""
    same, most = 0, min(len(first), len(second))
    while same < most:
        middle = (same + most + 1) // 2
        if first[same:middle] == second[same:middle]:
            same = middle
        else:
            most = middle - 1
    return same


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
