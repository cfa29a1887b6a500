"""A window whose size follows the teacher's replicas."""

import asyncio

import pytest

from services.window import Window
from tests.unit.services.clock import run

pytestmark = pytest.mark.unit


async def settle() -> None:
    """Let everything go on that can."""
    for _ in range(5):
        await asyncio.sleep(0)


def test_window_that_grows_lets_in_who_waits() -> None:
    async def main() -> list[bool]:
        window = Window(4)
        waiting = [asyncio.ensure_future(window.enter(4)) for _ in range(3)]
        await settle()
        before = [each.done() for each in waiting]
        window.resize(8)
        await settle()
        after = [each.done() for each in waiting]
        waiting[2].cancel()
        return before + after

    assert run(main()) == [True, False, False, True, True, False]


def test_window_that_shrinks_lets_nobody_in_until_enough_have_left() -> None:
    async def main() -> tuple[bool, bool, int]:
        window = Window(8)
        for _ in range(4):
            await window.enter(2)
        window.resize(4)
        waiting = asyncio.ensure_future(window.enter(2))
        window.leave(4)
        await settle()
        early = waiting.done()
        window.leave(2)
        return early, await waiting == 2, window.free

    assert run(main()) == (False, True, 0)


def test_call_larger_than_a_window_that_has_shrunk_is_let_in_when_it_is_empty() -> None:
    async def main() -> tuple[int, int]:
        window = Window(8)
        await window.enter(8)
        waiting = asyncio.ensure_future(window.enter(8))
        await settle()
        window.resize(2)
        window.leave(8)
        return await waiting, window.free

    assert run(main()) == (2, 0)


def test_call_that_is_cancelled_as_it_is_let_in_leaves_what_it_took() -> None:
    async def main() -> int:
        window = Window(3)
        await window.enter(3)
        waiting = asyncio.ensure_future(window.enter(5))
        await settle()
        window.leave(3)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        return window.free

    assert run(main()) == 3
