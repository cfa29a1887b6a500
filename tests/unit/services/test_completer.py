"""What a client asks of a simulated engine, on an event loop whose clock jumps: how full it is, what comes twice."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from math import exp, log
from random import Random
from statistics import NormalDist

import pytest

from configs.schema import GenerationConfig, SamplingConfig, TruncationPolicy
from services.client import ClientSpec
from services.completer import Completer
from services.generation import GenerateRequest, GenerateResult, Sample
from services.replies import yield_in_groups
from services.requester import Requester
from tests.unit.services.clients import make_spec
from tests.unit.services.clock import run

pytestmark = pytest.mark.unit

STEP_S = 0.02  # of the simulated engine, whoever is in it
P50, P99_OVER_P50, LONGEST = 64, 8.0, 1024  # tokens of the long tail


@dataclass
class Engine:
    """As a deployment handle's method: ``places`` rows decode at a time, in the order of their arrival.

    A row has as many tokens as the first number of its id says, at most its ``max_tokens``.
    """

    places: int
    calls: list[list[str]] = field(default_factory=list)
    decoded: list[tuple[float, float]] = field(default_factory=list)  # from when until when each row was
    refuse: Callable[[GenerateRequest], bool] = lambda _: False

    def __post_init__(self) -> None:
        self._free = asyncio.Semaphore(self.places)

    def remote(self, batch: list[GenerateRequest]) -> "Reply":
        self.calls.append([each.request_id.split("-")[0] for each in batch])
        return Reply(yield_in_groups(self._decode(each) for each in batch))

    async def _decode(self, request: GenerateRequest) -> GenerateResult:
        if self.refuse(request):
            return GenerateResult(request.request_id, error="refused")
        tokens = int(request.request_id.split("x")[0])
        clock = asyncio.get_running_loop().time
        async with self._free:
            started = clock()
            await asyncio.sleep(STEP_S * min(tokens, request.max_tokens))
            self.decoded.append((started, clock()))
        reason = "length" if tokens > request.max_tokens else "stop"
        return GenerateResult(request.request_id, (Sample([0] * min(tokens, request.max_tokens), reason),))

    def fullness(self, begin: float, end: float) -> float:
        """Share of the places that decoded between two moments."""
        busy = sum(max(0.0, min(end, ended) - max(begin, started)) for started, ended in self.decoded)
        return busy / (self.places * (end - begin))


@dataclass
class Reply:
    """As a streaming deployment response."""

    results: AsyncIterator[list[GenerateResult]]

    def __aiter__(self) -> AsyncIterator[list[GenerateResult]]:
        return self.results

    def cancel(self) -> None:
        """What decodes ends with whoever listens."""


def request(name: str, token_ids: list[int] | None = None, max_tokens: int = LONGEST) -> GenerateRequest:
    return GenerateRequest(name, token_ids or [1], 1, max_tokens, 0.0, 1.0, 0, (), 0)


def client_of(engine: Engine, spec: ClientSpec) -> Completer:
    requester = Requester(engine, window_rows=spec.window_rows, deadline_s=1e6, max_attempts=1)
    return Completer(requester, spec.generation)


def client_spec(window_rows: int, **generation: int) -> ClientSpec:
    return make_spec(window_rows=window_rows, generation=GenerationConfig(**generation))


def long_tail(num_rows: int) -> list[int]:
    """Lengths by the quantiles of a lognormal distribution, in random order."""
    normal, spread = NormalDist(), log(P99_OVER_P50) / NormalDist().inv_cdf(0.99)
    quantiles = ((place + 0.5) / num_rows for place in range(num_rows))
    lengths = [min(LONGEST, max(1, round(P50 * exp(spread * normal.inv_cdf(each))))) for each in quantiles]
    Random(0).shuffle(lengths)
    return lengths


def fullness(max_num_seqs: int, num_shards: int, **generation: int) -> float:
    """Of the engine while there are shards to open: as in Ray Data, one after another on each thread of the client."""
    spec = client_spec(round(1.5 * max_num_seqs), **generation)
    size = spec.generation.shard_rows
    lengths = long_tail(num_shards * size)

    async def main() -> float:
        engine = Engine(max_num_seqs)
        client = client_of(engine, spec)
        shards = iter([lengths[start : start + size] for start in range(0, len(lengths), size)])
        opened = 0.0

        async def work() -> None:
            nonlocal opened
            for shard in shards:
                opened = asyncio.get_running_loop().time()
                rows = [request(f"{length}x{place}") for place, length in enumerate(shard)]
                await client.complete(rows, SamplingConfig())

        await asyncio.gather(*(work() for _ in range(spec.shards_at_once)))
        return engine.fullness(STEP_S * LONGEST, opened)

    return run(main())


@pytest.mark.parametrize("shard_rows", [512, 128])
def test_engine_never_runs_dry_for_the_longest_rows_of_a_shard(shard_rows: int) -> None:
    """The shards' longest rows are ten times the mean; as few shards as fill the window leave it 58 % full."""
    assert fullness(256, 16384 // shard_rows, shard_rows=shard_rows) > 0.98


def complete(
    engine: Engine,
    requests: list[GenerateRequest],
    sampling: SamplingConfig,
    window_rows: int = 2,
    **generation: int,
) -> dict[str, GenerateResult]:
    async def main() -> dict[str, GenerateResult]:
        return await client_of(engine, client_spec(window_rows, **generation)).complete(requests, sampling)

    return run(main())


def retry_once(**options: int) -> SamplingConfig:
    return SamplingConfig(max_tokens=5, truncation=TruncationPolicy.RETRY_ONCE, **options)


@pytest.mark.parametrize(("options", "tokens"), [({}, 9), ({"retry_max_tokens": 7}, 7)])
def test_truncated_row_is_asked_for_again_before_what_has_not_begun(options: dict[str, int], tokens: int) -> None:
    """A shard's last row to begin would otherwise be its longest."""
    engine = Engine(2)
    names = ["9x0", *(f"3x{place}" for place in range(1, 20))]
    results = complete(engine, [request(name, max_tokens=5) for name in names], retry_once(**options))
    asked = [name for call in engine.calls for name in call]
    assert sorted(asked) == sorted([*names, "9x0"])
    assert asked[1:].index("9x0") < 5
    assert {name: len(each.samples[0].token_ids) for name, each in results.items()} == (
        {"9x0": tokens} | dict.fromkeys(names[1:], 3)
    )


def test_truncated_row_keeps_its_first_result_when_the_second_is_an_error() -> None:
    engine = Engine(2, refuse=lambda each: each.max_tokens > 5)
    results = complete(engine, [request("9x0", max_tokens=5), request("3x1", max_tokens=5)], retry_once())
    assert {name: each.error for name, each in results.items()} == {"9x0": None, "3x1": None}
    assert results["9x0"].samples == (Sample([0] * 5, "length"),)


def test_truncated_row_is_asked_for_once_without_retries() -> None:
    engine = Engine(2)
    complete(engine, [request("9x0", max_tokens=5)], SamplingConfig(max_tokens=5))
    assert engine.calls == [["9x0"]]


def test_fault_of_a_second_try_travels_at_once_and_ends_all_calls() -> None:
    def refuse(each: GenerateRequest) -> bool:
        if each.max_tokens > 5 and each.request_id.startswith("9x0"):
            raise ValueError("bad argument")
        return False

    engine = Engine(4, refuse=refuse)

    async def main() -> tuple[float, int]:
        client = client_of(engine, client_spec(20))
        with pytest.raises(ValueError, match="bad argument"):
            await client.complete([request("9x0", max_tokens=5), request("9999x1", max_tokens=9999)], retry_once())
        seconds = asyncio.get_running_loop().time()
        await asyncio.sleep(1)
        return seconds, len(asyncio.all_tasks())

    seconds, tasks = run(main())
    assert seconds < 1
    assert tasks == 1  # this one


def test_call_of_an_older_shard_that_has_to_be_made_again_passes_newer_shards() -> None:
    class BackPressureError(Exception):
        """Of Serve's name."""

    def refuse(each: GenerateRequest) -> bool:
        if each.request_id == "5x00-0":  # the very first call
            raise BackPressureError
        return False

    async def main() -> list[str]:
        engine = Engine(2, refuse=refuse)
        client = client_of(engine, client_spec(1))
        names = [[f"5x{shard}{place}" for place in range(5)] for shard in range(3)]
        await asyncio.gather(*(client.complete(list(map(request, each)), SamplingConfig()) for each in names))
        return [name for call in engine.calls for name in call]

    asked = run(main())
    assert len(asked) == 16
    assert asked[1:].index("5x00") < 7  # of the others three or four go by while it pauses


def test_prompts_that_share_a_prefix_travel_in_one_call() -> None:
    """Cut at 16 rows, the second of five groups of six would go to two replicas."""
    prefixes = {name: [place] * 32 for place, name in enumerate("abcde", start=1)}
    rows = [request(f"5x{name}{row}", [*prefix, row]) for row in range(6) for name, prefix in prefixes.items()]
    engine = Engine(99)
    complete(engine, rows, SamplingConfig(), window_rows=99, rows_per_call=16)
    assert ["".join(sorted({name[2] for name in call})) for call in engine.calls] == ["ab", "cd", "e"]
    assert [len(call) for call in engine.calls] == [12, 12, 6]
