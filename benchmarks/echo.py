"""A teacher without an engine: the answer to a prompt is a function of its tokens, and faults come when told.

The benchmarks use it to measure what is ours alone, and the chaos tests to know every answer beforehand.
"""

import asyncio
import logging
import os
import time
import zlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from services.generation import GenerateRequest, GenerateResult, Sample
from services.meter import Meter
from services.replies import yield_in_groups

LONGEST_ANSWER = 24  # tokens; prompts ask for fewer, so that some answers are truncated
NEVER_S = 3600.0
QUIET = {"log_level": "ERROR", "enable_access_log": False}  # a real teacher writes no line a call either


@dataclass(frozen=True, slots=True)
class EchoScript:
    """How the teacher behaves. Token ids mark prompts; calls are counted by each replica from 0.

    ``tally`` is a directory where each replica notes the tokens that it has made, whatever becomes of them. With
    ``rows_at_once`` a replica is like an engine: it works on so many rows, each for ``latency_s`` give or take
    ``spread`` of it, the others wait, and each row goes back when it is done.
    """

    latency_s: float = 0.0
    rows_at_once: int | None = None
    spread: float = 0.0
    die_on_token: int | None = None
    refuse_token: int | None = None
    die_at_calls: tuple[int, ...] = ()
    hang_at_calls: tuple[int, ...] = ()
    late_at_calls: tuple[int, ...] = ()
    tally: str | None = None


class EchoTeacher:
    """A Serve deployment with the one method that clients call."""

    def __init__(self, script: EchoScript) -> None:
        self._script = script
        self._calls = count()
        self._meter = Meter(cold_start_s=0.0)
        self._slots = asyncio.Semaphore(script.rows_at_once or 1)

    async def generate(self, batch: list[GenerateRequest]) -> AsyncGenerator[list[GenerateResult]]:
        """Answer a micro-batch, or do what the script says instead."""
        with self._meter.call():
            if self._script.rows_at_once is not None:
                async for results in yield_in_groups(self._decode(each) for each in batch):
                    self._count(results)
                    yield results
                return
            results = await self._answer(batch)
            self._count(results)
            yield results

    async def tell_backlog(self, rows: int, seconds_left: float | None) -> float:
        """As a real teacher's."""
        return self._meter.tell(rows, seconds_left)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """As a real teacher's."""
        return self._meter.report()

    async def _decode(self, request: GenerateRequest) -> GenerateResult:
        script = self._script
        share = zlib.crc32(repr(request.prompt_token_ids).encode()) / 2**32
        async with self._slots:
            await asyncio.sleep(script.latency_s * (1.0 + script.spread * (2.0 * share - 1.0)))
        return answer(request, script.refuse_token)

    async def _answer(self, batch: list[GenerateRequest]) -> list[GenerateResult]:
        script, call = self._script, next(self._calls)
        if script.latency_s:
            await asyncio.sleep(script.latency_s)
        if call in script.die_at_calls or any(script.die_on_token in each.prompt_token_ids for each in batch):
            os._exit(1)
        if call in script.hang_at_calls:
            await asyncio.sleep(NEVER_S)
        if call in script.late_at_calls:
            raise TimeoutError("the script says that this call is late")
        return [answer(each, script.refuse_token) for each in batch]

    def _count(self, results: list[GenerateResult]) -> None:
        self._meter.count(results)
        if self._script.tally is not None:
            _note(Path(self._script.tally), sum(len(sample.token_ids) for each in results for sample in each.samples))


def answer(request: GenerateRequest, refuse_token: int | None = None) -> GenerateResult:
    """The prompt's tokens, rotated by the sample's index and repeated to a length that is a hash of both."""
    if refuse_token is not None and refuse_token in request.prompt_token_ids:
        return GenerateResult(request.request_id, error="the echo refuses this prompt")
    samples = (_sample(request.prompt_token_ids, index, request.max_tokens) for index in range(request.n))
    return GenerateResult(request.request_id, samples=tuple(samples))


def _sample(prompt: list[int], index: int, max_tokens: int) -> Sample:
    wanted = 1 + zlib.crc32(repr((prompt, index)).encode()) % LONGEST_ANSWER
    start = index % len(prompt)
    tokens = ((prompt[start:] + prompt[:start]) * (1 + wanted // len(prompt)))[: min(wanted, max_tokens)]
    return Sample(tokens, "length" if wanted > max_tokens else "stop")


def _note(tally: Path, tokens: int) -> None:
    """One short line, appended at once: it is there even if the process ends right after."""
    with open(tally / f"{os.getpid()}.tokens", "a") as file:
        file.write(f"{tokens} {time.time():.3f}\n")


def tokens_made(tally: Path) -> int:
    """Tokens of all answers that were given so far, by any replica."""
    return sum(int(line.split()[0]) for line in _noted(tally))


def first_answer_at(tally: Path) -> float:
    """When any replica gave its first answer (seconds since 1970)."""
    return min(float(line.split()[1]) for line in _noted(tally))


def _noted(tally: Path) -> list[str]:
    return [line for file in tally.glob("*.tokens") for line in file.read_text().splitlines()]


def start_serve() -> None:
    """Start Serve without HTTP, where it is not there yet."""
    from ray import serve  # connected by the caller; readers of this module need no Ray

    logging.getLogger("ray.serve").setLevel(logging.ERROR)  # after its import, which sets it
    serve.start(proxy_location="Disabled", logging_config=QUIET)


def deploy(
    name: str,
    script: EchoScript,
    *,
    num_replicas: int = 1,
    num_cpus: float = 0.5,
    scaling: dict[str, Any] | None = None,
    wait: bool = True,
) -> None:
    """Start the teacher as the Serve application ``name``, or replace it, and ``wait`` until its replicas are up.

    ``scaling`` are options of its deployment in place of a fixed number of replicas.
    """
    from ray import serve

    start_serve()
    options: dict[str, Any] = {
        "name": "echo",
        "max_ongoing_requests": 64,
        "health_check_period_s": 0.5,
        "health_check_timeout_s": 10,
        "graceful_shutdown_timeout_s": 0.1,
        "logging_config": QUIET,
        "ray_actor_options": {"num_cpus": num_cpus},
    }
    deployment = serve.deployment(EchoTeacher).options(**options | (scaling or {"num_replicas": num_replicas}))
    target = serve.RunTarget(deployment.bind(script), name=name, route_prefix=None)
    serve.run_many([target], wait_for_applications_running=wait, wait_for_ingress_deployment_creation=True)
