"""What admission knows of one request: whether it has a slot, waits for one, or has released it."""

import random
from collections.abc import AsyncIterable, AsyncIterator, Hashable
from enum import Enum, auto
from time import perf_counter

from app.kernel.errors import Unavailable
from app.kernel.fairness.callers import Caller, caller_var
from app.kernel.fairness.count import FairCount
from app.kernel.fairness.limiter import RequestClass
from app.kernel.fairness.time_shares import StepTimer

# Seconds.
MAX_RETRY_AFTER = 3
# What reading a stored file and sending it takes, in the event loop, the threads of the store and the system together.
_SECONDS_PER_BYTE = 4e-9
# Level 1 of zlib on a CSV file of events; counted and not timed, because a chunk also waits for its turn at the thread.
_SECONDS_PER_COMPRESSED_BYTE = 8e-9


# Where a request counts that waits for its body, and as whose.
UploadCount = tuple[FairCount, Hashable]


class Overloaded(Unavailable):
    """The service is at capacity. Try again after `Retry-After`."""

    code = "overloaded"
    title = "The service is at capacity"


class AdmissionStage(Enum):
    """What a request has of its class's limiter. `PENDING`: nothing yet, because it may not need a slot; `QUEUED`: room
    in the queue is promised to it.
    """

    PENDING = auto()
    QUEUED = auto()
    ADMITTED = auto()
    RELEASED = auto()


class AdmissionTicket:
    """One request at the limiter of its class. `timer` adds up its steps on the event loop."""

    __slots__ = ("_admitted_at", "_caller", "_request_class", "stage", "timer")

    def __init__(self, request_class: RequestClass) -> None:
        self._request_class = request_class
        self._admitted_at = 0.0
        self._caller: Caller | None = None
        self.stage = AdmissionStage.PENDING
        self.timer: StepTimer | None = None

    def try_acquire(self) -> bool:
        """Takes a slot if one is free."""
        if not self._request_class.limiter.try_acquire(self._request_class):
            return False
        self.stage = AdmissionStage.ADMITTED
        self._admitted_at = perf_counter()
        return True

    def try_enter(self) -> bool:
        """Takes a slot, or else room in the queue; False: there is neither."""
        request_class = self._request_class
        if self.try_acquire():
            return True
        if not request_class.limiter.can_queue(request_class):
            return False
        request_class.promised += 1
        self.stage = AdmissionStage.QUEUED
        return True

    async def acquire(self, caller: Hashable | None) -> None:
        """Waits for a slot, if the request goes on without one so far.

        Raises:
            Overloaded: there is none.
        """
        stage = self.stage
        if stage is AdmissionStage.ADMITTED or stage is AdmissionStage.RELEASED:
            return
        request_class = self._request_class
        limiter = request_class.limiter
        if stage is AdmissionStage.QUEUED:
            request_class.promised -= 1
            self.stage = AdmissionStage.PENDING
        if not self.try_acquire():
            may_queue = stage is AdmissionStage.QUEUED or limiter.can_queue(request_class)
            if not (may_queue and await limiter.wait(request_class)):
                raise _overloaded()
            self.stage = AdmissionStage.ADMITTED
            self._admitted_at = perf_counter()
        await self.assign(caller)

    async def assign(self, caller: Hashable | None) -> None:
        """Counts a slot as its caller's, once both are known; one that is not fair is given up and waited for.

        Raises:
            Overloaded: the caller has half of the slots, and others want some.
        """
        if caller is None or self.stage is not AdmissionStage.ADMITTED or self._caller is not None:
            return
        # While it waits it has given its slot up, and may be cancelled.
        self.stage = AdmissionStage.RELEASED
        if not await self._request_class.limiter.assign(self._request_class, caller):
            raise _overloaded()
        self.stage = AdmissionStage.ADMITTED
        self._caller = Caller(caller)
        caller_var.set(self._caller)

    def change_caller(self) -> None:
        """The client has proved to be a user: its slot, if it has one, is no longer its network's (`assign`)."""
        caller = self._caller
        if caller is not None and self.stage is AdmissionStage.ADMITTED:
            self._caller = None
            self._request_class.limiter.unassign(caller.key, caller.used)

    async def acquire_hashing(self, caller: Hashable | None) -> None:
        """Takes a slot of those that hash a password, in place of the one that the request has.

        Raises:
            Overloaded: there is none.
        """
        request_class = self._request_class
        if request_class.hashing is None or self.stage is not AdmissionStage.ADMITTED:
            return
        self.stage = AdmissionStage.PENDING
        request_class.limiter.release(request_class)
        counted, self._caller = self._caller, None
        if counted is not None:
            request_class.limiter.unassign(counted.key, self._steps() + counted.used)
        self._request_class = request_class.hashing
        await self.acquire(caller)

    def pause(self) -> UploadCount | None:
        """Takes the slot away from a request whose client has yet to send the rest of its body: waiting for a client is
        no work, and must keep no other from it. `acquire` then waits for another slot.

        Answers where the request counts as an upload from now on, until it is given back; None: it has no slot.

        Raises:
            Overloaded: the caller has as many uploads under way as one may.
        """
        if self.stage is not AdmissionStage.ADMITTED:
            return None
        limiter = self._request_class.limiter
        caller, key = self._caller, None if self._caller is None else self._caller.key
        if not limiter.uploads.take(key):
            raise _overloaded()
        self.stage = AdmissionStage.PENDING
        limiter.release(self._request_class)
        if caller is not None:
            self._caller = None
            limiter.unassign(key, self._steps() + caller.used)
        return limiter.uploads, key

    def release(self, kind: Hashable) -> None:
        """Gives the slot back, if the request has one. From now on the request only sends or waits. `kind` is what is
        asked for, whose usual latency the limiter learns.
        """
        request_class = self._request_class
        limiter = request_class.limiter
        stage, self.stage = self.stage, AdmissionStage.RELEASED
        if stage is AdmissionStage.QUEUED:
            request_class.promised -= 1
        elif stage is AdmissionStage.ADMITTED:
            now = perf_counter()
            seconds = now - self._admitted_at
            caller = self._caller
            # That the caller's own requests keep it waiting says nothing of the load.
            limiter.observe(kind, seconds if caller is None else seconds - caller.waited, now)
            limiter.release(request_class)
            if caller is not None:
                limiter.unassign(caller.key, self._steps() + caller.used)

    def _steps(self) -> float:
        return self.timer.take() if self.timer is not None else 0.0

    async def pace(self, chunks: AsyncIterable[bytes], *, is_compressed: bool) -> AsyncIterator[bytes]:
        """The chunks of a stored file, whose request has released its slot, no faster than its caller's share of the
        time allows. `is_compressed`: they will be, on their way out.
        """
        seconds_per_byte = _SECONDS_PER_BYTE + (_SECONDS_PER_COMPRESSED_BYTE if is_compressed else 0.0)
        async for chunk in chunks:
            if self._caller is not None:
                await self._request_class.limiter.pace(self._caller.key, len(chunk) * seconds_per_byte)
            yield chunk


def _overloaded() -> Overloaded:
    return Overloaded(retry_after=random.randint(1, MAX_RETRY_AFTER))  # noqa: S311 - jitter, not a secret
