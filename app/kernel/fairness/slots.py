"""Slots of something scarce, of which no caller holds more than half of what the others leave."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Hashable
from contextlib import suppress
from time import monotonic

_ALONE_AFTER_SECONDS = 1.0

Key = tuple[Hashable, bool]


class FairSlots:
    """`size` slots, of which `max_writes` are for writes.

    A caller may take a slot while it holds fewer than are free, and always its first one. So one that floods the slots
    keeps half of what the others leave, and each further caller that does the same half of the rest: a caller with few
    requests always finds a slot, or waits for one that is given back. Waiting callers take turns. The caller None
    stands for the program itself and has no such limit.

    `lends_idle`: a caller that has been alone for a second may have all slots. That is right where each is held for a
    moment, so that a caller who comes then waits for no longer than that.
    """

    def __init__(self, size: int, *, max_writes: int | None = None, lends_idle: bool = False) -> None:
        self._size = size
        self._max_writes = size if max_writes is None else max_writes
        self._lends_idle = lends_idle
        self._used = 0
        self._writes = 0
        self._held: dict[Hashable, int] = {}
        self._last_caller: Hashable = None
        self._shared_until = 0.0
        # By caller and whether it writes, the next one first. No entry is empty.
        self._waiting: OrderedDict[Key, deque[asyncio.Future[None]]] = OrderedDict()

    def try_acquire(self, caller: Hashable, *, writes: bool = False) -> bool:
        """Takes a slot if the caller may have one now."""
        if self._lends_idle and caller != self._last_caller:
            if self._last_caller is not None:
                self._shared_until = monotonic() + _ALONE_AFTER_SECONDS
            self._last_caller = caller
        if not self._may_have(caller, writes=writes):
            return False
        self._take(caller, writes=writes)
        return True

    def waits_for_itself(self, caller: Hashable) -> bool:
        """Whether the caller is refused because of its own slots: the others leave at least half of them."""
        held = self._held.get(caller, 0)
        return caller is not None and held > 0 and (self._used - held) * 2 <= self._size

    def wait(self, caller: Hashable, *, writes: bool = False) -> "asyncio.Future[None]":
        """A future that is done once the caller has a slot. One that is given up goes to `withdraw`."""
        slot: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault((caller, writes), deque()).append(slot)
        return slot

    def withdraw(self, caller: Hashable, slot: "asyncio.Future[None]", *, writes: bool = False) -> None:
        """Waits no longer; a slot that came in this very moment is given back."""
        if slot.done() and not slot.cancelled():
            self.release(caller, writes=writes)
            return
        key = (caller, writes)
        waiting = self._waiting.get(key)
        if waiting is not None:
            with suppress(ValueError):
                waiting.remove(slot)
            if not waiting:
                del self._waiting[key]

    def release(self, caller: Hashable, *, writes: bool = False) -> None:
        """Gives a slot back, to a caller that waits if one may have it."""
        self._used -= 1
        self._writes -= writes
        if caller is not None:
            left = self._held[caller] - 1
            if left:
                self._held[caller] = left
            else:
                del self._held[caller]
        if self._waiting:
            self._hand_on()

    def _may_have(self, caller: Hashable, *, writes: bool) -> bool:
        free = self._size - self._used
        if free <= 0 or (writes and self._writes >= self._max_writes):
            return False
        held = self._held.get(caller)
        return held is None or held < free or (self._lends_idle and monotonic() >= self._shared_until)

    def _take(self, caller: Hashable, *, writes: bool) -> None:
        self._used += 1
        self._writes += writes
        if caller is not None:
            self._held[caller] = self._held.get(caller, 0) + 1

    def _hand_on(self) -> None:
        for key in list(self._waiting):
            if self._used >= self._size:
                return
            caller, writes = key
            waiting = self._waiting[key]
            while waiting and waiting[0].done():
                # Cancelled in this turn of the loop, before its task could withdraw it.
                waiting.popleft()
            if waiting and self._may_have(caller, writes=writes):
                self._take(caller, writes=writes)
                waiting.popleft().set_result(None)
                self._waiting.move_to_end(key)
            if not waiting:
                del self._waiting[key]
