"""The clock of a loop jumps from timer to timer, and what it leans on is there."""

import asyncio
import selectors
import time
from typing import Any

import pytest

from processor.testing.fake.internals import LoopClock


async def test_asyncio_tells_its_selector_how_long_it_would_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The private name `_selector`: in which file and for what, see internals.py."""
    loop, noticed = asyncio.get_running_loop(), asyncio.Event()
    selector: Any = getattr(loop, "_selector")  # noqa: B009
    assert isinstance(selector, selectors.BaseSelector)
    notified: list[float | None] = []
    select = selector.select

    def watched(timeout: float | None) -> list[tuple[selectors.SelectorKey, int]]:
        notified.append(timeout)
        if timeout:
            noticed.set()
        return select(0)

    monkeypatch.setattr(selector, "select", watched)
    timer = loop.call_later(60, noticed.set)
    await noticed.wait()
    timer.cancel()
    assert any(timeout is not None and 0 < timeout <= 60 for timeout in notified)


async def test_timers_fire_in_their_order_each_at_its_time() -> None:
    loop = asyncio.get_running_loop()
    clock, began_s = LoopClock.of(loop), loop.time()
    fired: list[int] = []

    async def tick(days: int) -> None:
        await asyncio.sleep(days * 86_400)
        fired.append(round((loop.time() - began_s) / 86_400))

    real_s = time.monotonic()
    with clock.jumping():
        await asyncio.gather(*(tick(days) for days in (30, 1, 7)))

    assert fired == [1, 7, 30]
    assert time.monotonic() - real_s < 60


async def test_a_thread_is_heard_while_time_stands() -> None:
    loop = asyncio.get_running_loop()
    LoopClock.of(loop)
    began_s = loop.time()
    assert await asyncio.to_thread(lambda: 7) == 7
    assert loop.time() - began_s < 60


async def test_idle_is_when_nothing_is_ready() -> None:
    clock = LoopClock.of(asyncio.get_running_loop())
    steps: list[int] = []

    async def work() -> None:
        for number in range(100):
            steps.append(number)
            await asyncio.sleep(0)
        await asyncio.sleep(3600)

    working = asyncio.create_task(work())
    await clock.idle()
    assert len(steps) == 100
    working.cancel()


def test_another_kind_of_loop_is_refused() -> None:
    class Loop:
        pass

    with pytest.raises(RuntimeError, match="asyncio's own event loop"):
        LoopClock.of(Loop())  # type: ignore[arg-type]
