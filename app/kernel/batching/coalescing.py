"""Coalescing: what many callers ask for at the same time is asked for once, together."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from time import monotonic
from typing import Generic, TypeVar

from app.kernel.background import Background
from app.kernel.batching.waiting import Waiting, fail_all, release_all
from app.kernel.errors import Unavailable
from app.kernel.fairness.callers import caller_var

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

# A key that was part of a batch which took too long is asked for alone for so long, unless that is answered quickly.
_ALONE_SECONDS = 10.0
_MAX_ALONE = 1024


class TooSlow(Exception):
    """Raised by `ask`: the keys together take too long. Each of them is asked for alone."""


class Coalescer(Generic[K, V]):
    """Turns calls of `get` into calls of `ask` with many keys.

    A call goes with the next batch, never with one that is under way, so that no answer is older than its question.
    Batches are sent at the end of a turn of the event loop while fewer than `max_running` of them are under way;
    `ask` leaves out what there is not. When it fails for a batch, each key is asked for alone, so that one bad key
    fails no other key; only `Unavailable`, and what `shared_failure` names, is the answer to all of them.

    After `TooSlow` the keys of the batch are asked for alone, at once and on behalf of their callers, and go on alone
    until they are answered within `slow_seconds`: what one key costs is then a matter of its own callers.
    """

    def __init__(
        self,
        ask: Callable[[Sequence[K]], Awaitable[Mapping[K, V]]],
        *,
        max_batch: int = 64,
        max_running: int = 2,
        shared_failure: type[Exception] = Unavailable,
        slow_seconds: float = 1.0,
    ) -> None:
        self._ask = ask
        self._max_batch = max_batch
        self._max_running = max_running
        self._shared_failures = (Unavailable, shared_failure)
        self._slow_seconds = slow_seconds
        self._waiting: deque[Waiting[K, V | None]] = deque()
        # Until when a key is asked for alone, the oldest first.
        self._alone: OrderedDict[K, float] = OrderedDict()
        self._running = 0
        self._is_scheduled = False
        self._background = Background()
        # Up to Python 3.11 each question for the running loop is a system call.
        self._loop = asyncio.get_running_loop()

    async def get(self, key: K) -> V | None:
        """What `ask` finds for `key`, or None; raises what `ask` raised for it."""
        if self._alone and self._goes_alone(key):
            return await self._ask_alone(key)
        answer: asyncio.Future[V | None] = self._loop.create_future()
        self._waiting.append(Waiting(key, answer, caller_var.get()))
        self._schedule()
        try:
            return await answer
        finally:
            # The traceback of an error that it holds refers to this frame: a cycle that would hold the whole request.
            del answer

    async def close(self) -> None:
        await self._background.close()

    def _schedule(self) -> None:
        if self._waiting and not self._is_scheduled and self._running < self._max_running:
            self._is_scheduled = True
            # Not at once: what the same turn of the loop still brings belongs to the batch.
            self._loop.call_soon(self._send)

    def _send(self) -> None:
        self._is_scheduled = False
        batch: list[Waiting[K, V | None]] = []
        while self._waiting and len(batch) < self._max_batch:
            waiting = self._waiting.popleft()
            # A caller that has gone away meanwhile needs no answer.
            if not waiting.done.done():
                batch.append(waiting)
        if batch:
            self._running += 1
            self._background.spawn(self._answer(batch))
        self._schedule()

    async def _answer(self, batch: list[Waiting[K, V | None]]) -> None:
        # The task was begun by one request, but asks for all of them.
        caller_var.set(None)
        try:
            await self._answer_batch(batch)
        except TooSlow:
            self._split(batch)
            batch.clear()
        finally:
            self._running -= 1
            release_all(batch)
            self._schedule()

    async def _answer_batch(self, batch: list[Waiting[K, V | None]]) -> None:
        """Raises TooSlow where there are several keys."""
        keys = list(dict.fromkeys(waiting.item for waiting in batch))
        try:
            found = await self._ask(keys)
        except Exception as error:  # whatever it is, its caller gets it
            if len(keys) > 1 and isinstance(error, TooSlow):
                raise
            if len(batch) == 1 or isinstance(error, self._shared_failures):
                fail_all(batch, error)
                return
        else:
            _fulfil(batch, found)
            return
        for index in range(len(batch)):
            await self._answer_batch(batch[index : index + 1])

    def _split(self, batch: Sequence[Waiting[K, V | None]]) -> None:
        """Asks for each key of the batch alone. The batches that wait do not wait for this."""
        until = monotonic() + _ALONE_SECONDS
        by_key: dict[K, list[Waiting[K, V | None]]] = {}
        for waiting in batch:
            by_key.setdefault(waiting.item, []).append(waiting)
        for key, callers in by_key.items():
            self._alone[key] = until
            self._alone.move_to_end(key)
            self._background.spawn(self._answer_key(key, callers))
        while len(self._alone) > _MAX_ALONE:
            self._alone.popitem(last=False)

    async def _answer_key(self, key: K, callers: list[Waiting[K, V | None]]) -> None:
        caller_var.set(callers[0].caller)
        try:
            found = await self._ask_alone(key)
        except Exception as error:  # noqa: BLE001 - whatever it is, its callers get it
            fail_all(callers, error)
        else:
            _fulfil(callers, {} if found is None else {key: found})
        finally:
            release_all(callers)

    async def _ask_alone(self, key: K) -> V | None:
        started = monotonic()
        found = (await self._ask([key])).get(key)
        if monotonic() - started < self._slow_seconds:
            self._alone.pop(key, None)
        return found

    def _goes_alone(self, key: K) -> bool:
        until = self._alone.get(key)
        if until is None:
            return False
        if until < monotonic():
            del self._alone[key]
            return False
        return True


def _fulfil(batch: Sequence[Waiting[K, V | None]], found: Mapping[K, V]) -> None:
    for waiting in batch:
        waiting.resolve(found.get(waiting.item))
