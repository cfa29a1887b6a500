"""Who enters the window next."""

import asyncio

import pytest

from services.window import Window
from tests.unit.services.clock import run

pytestmark = pytest.mark.unit


def test_window_lets_in_by_place_and_then_by_arrival() -> None:
    entered: list[str] = []

    async def enter(window: Window, name: str, place: int) -> None:
        await window.enter(1, place)
        entered.append(name)

    async def main() -> None:
        window = Window(1)
        tasks = [asyncio.create_task(enter(window, f"{place}{name}", place)) for name in "abc" for place in (2, 0, 1)]
        for _ in tasks:
            await asyncio.sleep(1)
            window.leave(1)
        await asyncio.gather(*tasks)

    run(main())
    assert entered == ["2a", "0a", "0b", "0c", "1a", "1b", "1c", "2b", "2c"]  # the first found it empty


@pytest.mark.parametrize("is_let_in", [False, True])
def test_window_whoever_gives_up_holds_up_nobody(is_let_in: bool) -> None:
    """The large one waits at the head, or has just been let in, when it is cancelled."""

    async def main() -> int:
        window = Window(4)
        await window.enter(1)
        large = asyncio.create_task(window.enter(4))
        small = asyncio.create_task(window.enter(2))
        await asyncio.sleep(1)
        if is_let_in:
            window.leave(1)
        large.cancel()
        await small
        return window.free

    assert run(main()) == (2 if is_let_in else 1)
