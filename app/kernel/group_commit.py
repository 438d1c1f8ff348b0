"""Group commit: small writes of many requests that come while one is being written become the next one together."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from prometheus_client import Histogram

from app.kernel.background import Background

T = TypeVar("T")

_group_size = Histogram(
    "app_group_commit_size", "Writes that one commit carried.", buckets=(1, 2, 4, 8, 16, 32, 64, 128)
)


class GroupCommit(Generic[T]):
    """Each caller gets its answer only after its own item is committed.

    `write` commits a sequence of items, all or none. When it fails for a group, each item is tried alone, so that one
    bad item fails nobody else. `weight` is the size of an item; a group is at most `max_weight` heavy, or one item.
    """

    def __init__(
        self,
        write: Callable[[Sequence[T]], Awaitable[None]],
        *,
        weight: Callable[[T], int],
        max_weight: int = 1_000,
    ) -> None:
        self._write = write
        self._weight = weight
        self._max_weight = max_weight
        self._waiting: deque[tuple[T, asyncio.Future[None]]] = deque()
        self._background = Background()
        self._is_writing = False

    async def submit(self, item: T) -> None:
        """Returns when `item` is committed; raises what `write` raised for it."""
        done = asyncio.get_running_loop().create_future()
        self._waiting.append((item, done))
        if not self._is_writing:
            self._is_writing = True
            # Not at once: what the same turn of the loop still brings belongs to the group.
            self._background.spawn(self._write_all())
        await done

    async def close(self) -> None:
        await self._background.close()

    async def _write_all(self) -> None:
        try:
            while self._waiting:
                await self._write_group(self._next_group())
        finally:
            self._is_writing = False

    def _next_group(self) -> list[tuple[T, asyncio.Future[None]]]:
        group = [self._waiting.popleft()]
        weight = self._weight(group[0][0])
        while self._waiting and weight + self._weight(self._waiting[0][0]) <= self._max_weight:
            weight += self._weight(self._waiting[0][0])
            group.append(self._waiting.popleft())
        return group

    async def _write_group(self, group: Sequence[tuple[T, asyncio.Future[None]]]) -> None:
        _group_size.observe(len(group))
        try:
            await self._write([item for item, _ in group])
        except asyncio.CancelledError:
            for _, done in group:
                done.cancel()
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, its caller gets it
            if len(group) == 1:
                _settle(group[0][1], error)
            else:
                for entry in group:
                    await self._write_group([entry])
        else:
            for _, done in group:
                _settle(done, None)


def _settle(done: "asyncio.Future[None]", error: Exception | None) -> None:
    if done.done():
        return
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error)
