"""Coalescing: what many callers ask for at the same time is asked for once, together."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from typing import Generic, TypeVar

from app.kernel.background import Background
from app.kernel.callers import caller_var
from app.kernel.errors import Unavailable

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Coalescer(Generic[K, V]):
    """Turns calls of `get` into calls of `ask` with many keys.

    A call goes with the next batch, never with one that is under way, so that no answer is older than its question.
    Batches are sent at the end of a turn of the event loop while fewer than `max_running` of them are under way;
    `ask` leaves out what there is not. When it fails for a batch, each key is asked for alone, so that one bad key
    fails nobody else; only `Unavailable`, and what `shared_failure` names, is the answer to all of them.
    """

    def __init__(
        self,
        ask: Callable[[Sequence[K]], Awaitable[Mapping[K, V]]],
        *,
        max_batch: int = 64,
        max_running: int = 2,
        shared_failure: type[Exception] = Unavailable,
    ) -> None:
        self._ask = ask
        self._max_batch = max_batch
        self._max_running = max_running
        self._shared_failures = (Unavailable, shared_failure)
        self._waiting: deque[tuple[K, asyncio.Future[V | None]]] = deque()
        self._running = 0
        self._is_scheduled = False
        self._background = Background()
        # Up to Python 3.11 each question for the running loop is a system call.
        self._loop = asyncio.get_running_loop()

    async def get(self, key: K) -> V | None:
        """What `ask` finds for `key`, or None; raises what `ask` raised for it."""
        answer: asyncio.Future[V | None] = self._loop.create_future()
        self._waiting.append((key, answer))
        self._schedule()
        return await answer

    async def close(self) -> None:
        await self._background.close()

    def _schedule(self) -> None:
        if self._waiting and not self._is_scheduled and self._running < self._max_running:
            self._is_scheduled = True
            # Not at once: what the same turn of the loop still brings belongs to the batch.
            self._loop.call_soon(self._send)

    def _send(self) -> None:
        self._is_scheduled = False
        batch: list[tuple[K, asyncio.Future[V | None]]] = []
        while self._waiting and len(batch) < self._max_batch:
            key, answer = self._waiting.popleft()
            # Who has gone away meanwhile needs no answer.
            if not answer.done():
                batch.append((key, answer))
        if batch:
            self._running += 1
            self._background.spawn(self._answer(batch))
        self._schedule()

    async def _answer(self, batch: Sequence[tuple[K, "asyncio.Future[V | None]"]]) -> None:
        # The task was begun by one request, but asks for all of them.
        caller_var.set(None)
        try:
            await self._answer_batch(batch)
        finally:
            self._running -= 1
            for _, answer in batch:
                # Only where this was cut off at the end of the process.
                if not answer.done():
                    answer.cancel()
            self._schedule()

    async def _answer_batch(self, batch: Sequence[tuple[K, "asyncio.Future[V | None]"]]) -> None:
        try:
            found = await self._ask(list(dict.fromkeys(key for key, _ in batch)))
        except Exception as error:  # noqa: BLE001 - whatever it is, its caller gets it
            if len(batch) > 1 and not isinstance(error, self._shared_failures):
                for item in batch:
                    await self._answer_batch([item])
                return
            for _, answer in batch:
                if not answer.done():
                    answer.set_exception(error)
        else:
            for key, answer in batch:
                if not answer.done():
                    answer.set_result(found.get(key))
