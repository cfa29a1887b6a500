"""Rows leave a replica as they are done, some of them together."""

import asyncio
from contextlib import aclosing

import pytest

from services.generation import GenerateResult
from services.replies import FLUSH_S, yield_in_groups
from tests.unit.services.clock import run

pytestmark = pytest.mark.unit


async def answer(name: str, seconds: float) -> GenerateResult:
    await asyncio.sleep(seconds)
    return GenerateResult(name)


def test_yield_in_groups_gives_what_is_done_and_does_not_wait_for_the_rest() -> None:
    async def main() -> list[tuple[float, str]]:
        rows = [answer(name, seconds * FLUSH_S) for name, seconds in (("a", 0.1), ("b", 0.5), ("c", 2.5))]
        loop = asyncio.get_running_loop()
        return [
            (round(loop.time() / FLUSH_S, 6), "".join(sorted(each.request_id for each in group)))
            async for group in yield_in_groups(rows)
        ]

    assert run(main()) == [(1.0, "ab"), (2.5, "c")]


def test_yield_in_groups_without_rows_ends_at_once() -> None:
    async def main() -> list[list[GenerateResult]]:
        return [group async for group in yield_in_groups([])]

    assert run(main()) == []


def test_yield_in_groups_error_of_a_row_travels_and_cancels_the_others() -> None:
    async def fail() -> GenerateResult:
        raise ValueError("bad")

    async def main() -> "asyncio.Task[GenerateResult]":
        other = asyncio.ensure_future(answer("a", 1000))
        with pytest.raises(ValueError, match="bad"):
            async for _ in yield_in_groups([fail(), other]):
                pass
        await asyncio.sleep(0)
        return other

    assert run(main()).cancelled()


def test_yield_in_groups_whose_listener_leaves_cancels_what_is_left() -> None:
    async def main() -> "asyncio.Task[GenerateResult]":
        other = asyncio.ensure_future(answer("a", 1000))
        async with aclosing(yield_in_groups([answer("b", 0), other])) as groups:
            async for _ in groups:
                break
        await asyncio.sleep(0)
        return other

    assert run(main()).cancelled()
