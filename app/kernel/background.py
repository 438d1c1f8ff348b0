"""Work that goes on beside requests, kept from being forgotten and ended with the process."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine
from typing import Any, TypeVar

from prometheus_client import Counter

from app.kernel.errors import Unavailable
from app.kernel.observability.telemetry import get_logger

_logger = get_logger(__name__)
_failures = Counter("onehop_background_failures", "Failed rounds of repeated work.", ["work"])

T = TypeVar("T")
_CANCEL_AGAIN_SECONDS = 0.5
_CANCELS = 4


async def end_tasks(tasks: Collection["asyncio.Task[Any]"]) -> None:
    """Cancels the tasks and waits for them, two seconds at most.

    A library may swallow a cancellation that comes in the moment of a time-out of its own, so they are cancelled more
    than once.
    """
    left = set(tasks)
    for _ in range(_CANCELS):
        if not left:
            return
        for task in left:
            task.cancel()
        done, left = await asyncio.wait(left, timeout=_CANCEL_AGAIN_SECONDS)
        for task in done:
            if not task.cancelled():
                # Asked for, so that asyncio does not complain of errors that were never retrieved.
                task.exception()


async def is_set_within(event: asyncio.Event, seconds: float) -> bool:
    """Waits for `event`, at most so long; whether it is set."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True


async def until(stop: asyncio.Event | None, items: AsyncIterator[T]) -> AsyncIterator[T]:
    """The items, until there are no more or `stop` is set, whichever comes first."""
    stopped = asyncio.ensure_future(stop.wait()) if stop is not None else asyncio.get_running_loop().create_future()
    following: asyncio.Future[T] | None = None
    try:
        while not stopped.done():
            following = asyncio.ensure_future(anext(items))
            await asyncio.wait({following, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not following.done():
                return
            try:
                item = following.result()
            except StopAsyncIteration:
                return
            yield item
    finally:
        stopped.cancel()
        if following is not None and following.cancel():
            await asyncio.wait({following})


async def complete_once_begun(work: Coroutine[Any, Any, None], has_begun: Callable[[], bool]) -> None:
    """Awaits `work`. A cancel that comes once it has begun is taken back, so it must end within a bounded time."""
    caller = asyncio.current_task()
    task = asyncio.get_running_loop().create_task(work)
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            if has_begun() and caller is not None:
                caller.uncancel()
            else:
                task.cancel()
    await task


class Background:
    """Tasks of one owner."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Starts `work`; it is referenced until it ends."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def repeat(
        self,
        work: Callable[[], Awaitable[object]],
        *,
        name: str,
        every: float | Callable[[], float],
        wake: asyncio.Event | None = None,
        rests_first: bool = False,
    ) -> asyncio.Task[None]:
        """Calls `work` for ever, `every` seconds after its last end, or as soon as `wake` is set, which this clears.

        A failure does not end it. What was unavailable is logged for debugging, anything else as an error and counted.
        """
        return self.spawn(_repeat(work, name, every, wake, rests_first=rests_first))

    async def close(self) -> None:
        """Cancels what still runs and waits for it, but not for ever."""
        await end_tasks(self._tasks)


async def _repeat(
    work: Callable[[], Awaitable[object]],
    name: str,
    every: float | Callable[[], float],
    wake: asyncio.Event | None,
    *,
    rests_first: bool,
) -> None:
    is_due = not rests_first
    while True:
        if is_due:
            if wake is not None:
                wake.clear()
            try:
                await work()
            except Unavailable as error:
                _logger.debug("background.work_postponed", work=name, error=error.code)
            except Exception:
                _failures.labels(name).inc()
                _logger.exception("background.work_failed", work=name)
        is_due = True
        seconds = every() if callable(every) else every
        if wake is None:
            await asyncio.sleep(seconds)
        else:
            await is_set_within(wake, seconds)
