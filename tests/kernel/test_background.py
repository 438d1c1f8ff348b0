"""The end of tasks, and of what would have no end."""

import asyncio
from collections.abc import AsyncIterator

from prometheus_client import REGISTRY

from app.kernel.background import Background, end_tasks, until
from app.kernel.errors import Unavailable
from tests.fixtures.waiting import scaled


async def test_a_task_that_swallows_a_cancellation_is_ended() -> None:
    """As redis-py does when it comes in the moment of a time-out of its own."""
    swallowed = 0

    async def work() -> None:
        nonlocal swallowed
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                swallowed += 1
                if swallowed > 1:
                    raise

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    await end_tasks([task])
    assert task.cancelled()
    assert swallowed == 2


async def count(ended: list[int]) -> AsyncIterator[int]:
    try:
        yield 1
        yield 2
        await asyncio.sleep(60)
    finally:
        ended.append(1)


async def test_until() -> None:
    stop, ended = asyncio.Event(), list[int]()
    asyncio.get_running_loop().call_later(0.05, stop.set)
    assert [item async for item in until(stop, count(ended))] == [1, 2]
    assert ended == [1]


async def test_until_there_is_no_more() -> None:
    async def few() -> AsyncIterator[int]:
        yield 1

    assert [item async for item in until(None, few())] == [1]
    assert [item async for item in until(asyncio.Event(), few())] == [1]


async def test_repeated_work_goes_on_after_failures_which_are_counted() -> None:
    background, done = Background(), asyncio.Event()
    outcomes = iter((Unavailable(), ValueError("unforeseen"), None))

    async def work() -> None:
        if (error := next(outcomes)) is not None:
            raise error
        done.set()

    background.repeat(work, name="test.failing", every=0)
    try:
        async with asyncio.timeout(scaled(10)):
            await done.wait()
    finally:
        await background.close()
    failures = REGISTRY.get_sample_value("onehop_background_failures_total", {"work": "test.failing"})
    assert failures == 1


async def test_repeated_work_rests_until_it_is_woken() -> None:
    background, wake, called = Background(), asyncio.Event(), asyncio.Event()
    calls = 0

    async def work() -> None:
        nonlocal calls
        calls += 1
        assert not wake.is_set()
        called.set()

    background.repeat(work, name="test.woken", every=lambda: 3600.0, wake=wake, rests_first=True)
    try:
        for number in (1, 2):
            await asyncio.sleep(0)
            assert calls == number - 1
            called.clear()
            wake.set()
            async with asyncio.timeout(scaled(10)):
                await called.wait()
        assert calls == 2
    finally:
        await background.close()
