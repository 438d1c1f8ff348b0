"""The end of tasks, and of what would have no end."""

import asyncio
from collections.abc import AsyncIterator

from app.kernel.background import end_tasks, until


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
