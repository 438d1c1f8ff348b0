"""One call at a time of something that costs much, shared by all callers of the moment, and a rest after each."""

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Generic, TypeVar

from app.kernel.background import Background
from app.kernel.fairness.callers import caller_var

T = TypeVar("T")


class Paced(Generic[T]):
    """Calls `ask` for all that wait at that moment, so that no answer is older than its question.

    After each call it rests `rest` times as long as the call took, between `shortest` and `longest` seconds. However
    many ask, `ask` takes at most one part in `rest` + 1 of the time.
    """

    def __init__(
        self, ask: Callable[[], Awaitable[T]], *, rest: float, shortest: float = 0.02, longest: float = 1.0
    ) -> None:
        self._ask = ask
        self._rest = rest
        self._shortest = shortest
        self._longest = longest
        self._next: asyncio.Future[T] | None = None
        self._is_running = False
        self._rests_until = 0.0
        self._background = Background()

    async def get(self) -> T:
        """The answer to the next call; raises what it raises."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
            if not self._is_running:
                self._is_running = True
                self._background.spawn(self._run())
        # One that goes away must not end the call for the others.
        return await asyncio.shield(self._next)

    async def close(self) -> None:
        await self._background.close()

    async def _run(self) -> None:
        # The task was begun by one request, but answers all of them.
        caller_var.set(None)
        try:
            while self._next is not None:
                await asyncio.sleep(max(0.0, self._rests_until - monotonic()))
                answer, self._next = self._next, None
                started = monotonic()
                try:
                    answer.set_result(await self._ask())
                except asyncio.CancelledError:
                    answer.cancel()
                    raise
                except Exception as error:  # noqa: BLE001 - those who asked get it
                    answer.set_exception(error)
                    # Taken note of, in case all of them have gone.
                    answer.exception()
                # An error that it holds refers to it by way of its traceback.
                del answer
                ended = monotonic()
                self._rests_until = ended + min(max((ended - started) * self._rest, self._shortest), self._longest)
        finally:
            self._is_running = False
            if self._next is not None:
                self._next.cancel()
