"""Group commit: small writes of many requests that come while one is being written become the next one together."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Generic, TypeVar

from prometheus_client import Histogram

from app.kernel.background import Background
from app.kernel.batching.waiting import Waiting, fail_all, release_all
from app.kernel.errors import Unavailable
from app.kernel.fairness.callers import Caller, caller_var
from app.kernel.fairness.time_shares import StepTimer

T = TypeVar("T")
R = TypeVar("R")

_group_size = Histogram("onehop_group_commit_size", "Writes per group commit.", buckets=(1, 2, 4, 8, 16, 32, 64, 128))


class GroupCommit(Generic[T, R]):
    """Each caller gets its answer only after its own item is committed.

    `write` commits a sequence of items, all or none, and answers what became of each. When it fails for a group, its
    halves are tried by themselves, so that one bad item fails no other; not so when nothing can be written at the
    moment, which is no item's fault. `weight` is the size of an item; a group is at most `max_weight` heavy, or one
    item. Owners take turns, so that the many or large items of one do not let those of another wait. What a group takes
    is charged to its callers by weight.
    """

    def __init__(
        self,
        write: Callable[[Sequence[T]], Awaitable[Sequence[R]]],
        *,
        weight: Callable[[T], int],
        owner: Callable[[T], Hashable] = lambda _: None,
        max_weight: int = 1_000,
    ) -> None:
        self._write = write
        self._weight = weight
        self._max_weight = max_weight
        self._owner = owner
        # By owner, the next one first.
        self._waiting: OrderedDict[Hashable, deque[Waiting[T, R]]] = OrderedDict()
        self._background = Background()
        self._is_writing = False
        # Up to Python 3.11 each question for the running loop is a system call.
        self._loop = asyncio.get_running_loop()

    async def submit(self, item: T) -> R:
        """What became of `item`, once it is committed; raises what `write` raised for it."""
        done: asyncio.Future[R] = self._loop.create_future()
        owner = self._owner(item)
        items = self._waiting.get(owner)
        if items is None:
            items = self._waiting[owner] = deque()
        items.append(Waiting(item, done, caller_var.get(), self._weight(item)))
        if not self._is_writing:
            self._is_writing = True
            # Not at once: what the same turn of the loop still brings belongs to the group.
            self._background.spawn(self._write_all())
        try:
            return await done
        finally:
            # The traceback of an error that it holds refers to this frame: a cycle that would hold the whole request.
            del done

    async def close(self) -> None:
        await self._background.close()

    async def _write_all(self) -> None:
        try:
            while self._waiting:
                await self._write_group(self._next_group())
        finally:
            self._is_writing = False

    def _next_group(self) -> list[Waiting[T, R]]:
        group: list[Waiting[T, R]] = []
        left = self._max_weight
        while self._waiting:
            owner, items = next(iter(self._waiting.items()))
            left -= items[0].weight
            if group and left < 0:
                break
            group.append(items.popleft())
            if items:
                self._waiting.move_to_end(owner)
            else:
                del self._waiting[owner]
        return group

    async def _write_group(self, group: list[Waiting[T, R]]) -> None:
        _group_size.observe(len(group))
        # The task was begun by one request, but writes for all of them.
        together = Caller(None)
        caller_var.set(together)
        timer = StepTimer(self._write([waiting.item for waiting in group]))
        try:
            results = await timer
        except asyncio.CancelledError:
            release_all(group)
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, its callers get it
            _charge(group, timer.seconds() + together.used)
            if len(group) == 1 or isinstance(error, Unavailable):
                fail_all(group, error)
                return
        else:
            _charge(group, timer.seconds() + together.used)
            for waiting, result in zip(group, results, strict=True):
                waiting.resolve(result)
            return
        middle = len(group) // 2
        try:
            await self._write_group(group[:middle])
            await self._write_group(group[middle:])
        finally:
            release_all(group)


def _charge(group: Sequence[Waiting[T, R]], seconds: float) -> None:
    seconds_of_one = seconds / max(1, sum(waiting.weight for waiting in group))
    for waiting in group:
        if waiting.caller is not None:
            waiting.caller.used += waiting.weight * seconds_of_one
