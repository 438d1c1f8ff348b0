"""Lets in as many requests as can be worked on, lets a few wait shortly, and refuses the rest early and cheaply."""

import random
from collections.abc import AsyncIterable, AsyncIterator, Callable, Collection, Hashable
from time import perf_counter

from starlette.types import ASGIApp, Receive, Scope, Send

from app.kernel.auth import Principal
from app.kernel.errors import Unavailable
from app.kernel.fairness.callers import Caller, caller_var
from app.kernel.fairness.count import FairCount
from app.kernel.fairness.limiter import AdaptiveLimit, FixedLimit, Limiter, RequestClass
from app.kernel.fairness.time_shares import StepTimer, TimeShares
from app.kernel.settings import HttpSettings

# These tell whether the process lives and what it does, so they must answer when nothing else can.
_ALWAYS_ADMITTED = frozenset({"/livez", "/readyz", "/metrics"})
# What reads cannot take from writes and writes not from reads; the rest goes to the first request.
_RESERVED_FRACTION = 0.4
_LOWEST_LIMIT = 16
_FIRST_LIMIT = 32
# Seconds.
MAX_RETRY_AFTER = 3
# Where a request counts that waits for its body, and as whose.
UploadCount = tuple[FairCount, Hashable]
_READS = frozenset({"GET", "HEAD"})
# What reading a stored file and sending it takes, in the event loop, the threads of the store and the system together.
_SECONDS_PER_BYTE = 4e-9
# Level 1 of zlib on a CSV file of events; counted and not timed, because a chunk also waits for its turn at the thread.
_SECONDS_PER_COMPRESSED_BYTE = 8e-9


class Overloaded(Unavailable):
    """The service is at capacity. Try again after `Retry-After`."""

    code = "overloaded"
    title = "The service is at capacity"


class Admission:
    """Reads and writes have slots by what latency allows, log-ins as many as there are hashes at one time. A request
    that waits for something outside of this process gives its slot back (`release_slot`).

    `cached_paths` are the paths whose answers may come from memory, and `is_cached` tells of a request whether its
    answer does: that is given even when all slots are taken, since refusing would cost as much. Only what is not found
    there needs a slot (`acquire_slot`). `log_ins` are methods and paths of requests that hash a password.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: HttpSettings,
        *,
        cached_paths: Collection[str],
        is_cached: Callable[[Scope], bool],
        shares: TimeShares,
        log_ins: Collection[tuple[str, str]],
        max_log_ins: int,
    ) -> None:
        self._app = app
        # Whether a request lately found no slot; only then is it worth asking `refuses` first.
        self.is_saturated = False
        highest = settings.max_in_flight
        limit = AdaptiveLimit(lowest=min(_LOWEST_LIMIT, highest), start=min(_FIRST_LIMIT, highest), highest=highest)
        mark_saturated = self._mark_saturated
        parked = 2 * settings.max_waiting
        work = Limiter(
            "work",
            limit,
            queue_size=settings.max_waiting,
            max_wait=settings.max_wait,
            max_parked=parked,
            shares=shares,
            on_full=mark_saturated,
        )
        self._reads = RequestClass("read", work, _RESERVED_FRACTION)
        self._writes = RequestClass("write", work, _RESERVED_FRACTION)
        self._log_ins = RequestClass(
            "log_in",
            Limiter(
                "log_in",
                FixedLimit(max_log_ins),
                queue_size=0,
                max_wait=0,
                max_parked=parked,
                shares=shares,
                on_full=mark_saturated,
            ),
        )
        self._limiters = (work, self._log_ins.limiter)
        self._shares = shares
        self._cached_paths = frozenset(cached_paths)
        self._is_cached = is_cached
        self._log_in_routes = frozenset(log_ins)

    def sample(self) -> None:
        """Brings the metrics up to date."""
        for limiter in self._limiters:
            limiter.sample()
        self._shares.forget(perf_counter())
        self.is_saturated = not all(limiter.has_free_slot for limiter in self._limiters)

    def refuses(self, scope: Scope) -> bool:
        """Whether a request finds neither a slot nor room in the queue; it may be asked before anything is done for it.

        If not, it has one of both from now on, until `release_slot`.
        """
        if "slot" in scope or "queued" in scope:
            return False
        path = scope["path"]
        if path in _ALWAYS_ADMITTED:
            return False
        if path in self._cached_paths and scope["method"] in _READS and self._is_cached(scope):
            return False
        request_class = self._class_of(scope)
        if request_class.limiter.try_acquire(request_class):
            scope["slot"] = request_class
            scope["admitted_at"] = perf_counter()
        elif request_class.limiter.can_queue(request_class):
            request_class.promised += 1
            scope["queued"] = request_class
        else:
            return True
        return False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _ALWAYS_ADMITTED:
            await self._app(scope, receive, send)
            return
        if "queued" in scope:
            await acquire_slot(scope)
        elif "slot" not in scope:
            request_class = self._class_of(scope)
            if request_class is self._reads and scope["path"] in self._cached_paths:
                # What is found in memory needs no slot.
                scope["wanted_class"] = request_class
            elif request_class.limiter.try_acquire(request_class):
                scope["slot"] = request_class
                scope["admitted_at"] = perf_counter()
            else:
                scope["wanted_class"] = request_class
                await acquire_slot(scope)
        # The outermost layer releases the slot, because the server may have taken it (`refuses`).
        timer = scope["step_timer"] = StepTimer(self._app(scope, receive, send))
        await timer

    def _mark_saturated(self) -> None:
        self.is_saturated = True

    def _class_of(self, scope: Scope) -> RequestClass:
        if scope["method"] in _READS:
            return self._reads
        return self._log_ins if (scope["method"], scope["path"]) in self._log_in_routes else self._writes


async def acquire_slot(scope: Scope) -> None:
    """Waits for a slot, if the request goes on without one so far.

    Raises:
        Overloaded: there is none.
    """
    request_class: RequestClass | None = scope.pop("wanted_class", None)
    if request_class is None:
        request_class = scope.pop("queued", None)
        if request_class is None:
            return
        request_class.promised -= 1
        can_queue = True
    else:
        can_queue = False
    limiter = request_class.limiter
    if not limiter.try_acquire(request_class) and not (
        (can_queue or limiter.can_queue(request_class)) and await limiter.wait(request_class)
    ):
        raise Overloaded(retry_after=random.randint(1, MAX_RETRY_AFTER))  # noqa: S311 - jitter, not a secret
    scope["slot"] = request_class
    scope["admitted_at"] = perf_counter()
    await assign_slot(scope)


async def assign_slot(scope: Scope) -> None:
    """Counts a slot as its caller's, once both are known; one that is not fair is given up and waited for.

    The caller is the user, or the network of a client that has not proved to be one (`scope["network"]`).

    Raises:
        Overloaded: the caller has half of the slots, and others want some.
    """
    request_class: RequestClass | None = scope.get("slot")
    if request_class is None or "caller" in scope:
        return
    principal: Principal | None = scope.get("principal")
    key: Hashable = principal.user_id if principal is not None else scope.get("network")
    if key is None:
        return
    if not await request_class.limiter.assign(request_class, key):
        # It has given its slot up already.
        del scope["slot"]
        raise Overloaded(retry_after=random.randint(1, MAX_RETRY_AFTER))  # noqa: S311 - jitter, not a secret
    caller = scope["caller"] = Caller(key)
    caller_var.set(caller)


def change_caller(scope: Scope) -> None:
    """The client has proved to be a user: its slot, if it has one, is no longer its network's (`assign_slot`)."""
    caller: Caller | None = scope.pop("caller", None)
    if caller is not None:
        scope["slot"].limiter.unassign(caller.key, caller.used)


def pause_slot(scope: Scope) -> UploadCount | None:
    """Takes the slot away from a request whose client has yet to send the rest of its body: waiting for a client is no
    work, and must keep no other from it. `acquire_slot` then waits for another slot.

    Answers where the request counts as an upload from now on, until it is given back; None: it has no slot.

    Raises:
        Overloaded: the caller has as many uploads under way as one may.
    """
    request_class: RequestClass | None = scope.get("slot")
    if request_class is None:
        return None
    limiter = request_class.limiter
    caller: Caller | None = scope.get("caller")
    key = None if caller is None else caller.key
    if not limiter.uploads.take(key):
        raise Overloaded(retry_after=random.randint(1, MAX_RETRY_AFTER))  # noqa: S311 - jitter, not a secret
    del scope["slot"]
    limiter.release(request_class)
    if caller is not None:
        del scope["caller"]
        limiter.unassign(key, scope["step_timer"].take() + caller.used)
    scope["wanted_class"] = request_class
    return limiter.uploads, key


def release_slot(scope: Scope) -> None:
    """Gives the slot back, if the request has one. From now on the request only sends or waits."""
    request_class: RequestClass | None = scope.pop("slot", None)
    if request_class is not None:
        now = perf_counter()
        seconds = now - scope["admitted_at"]
        caller: Caller | None = scope.pop("caller", None)
        if caller is not None:
            # That says nothing of the load.
            seconds -= caller.waited
        request_class.limiter.observe(scope.get("endpoint") or scope.get("route_template"), seconds, now)
        request_class.limiter.release(request_class)
        if caller is not None:
            request_class.limiter.unassign(caller.key, scope["step_timer"].take() + caller.used)
            scope["payer"] = request_class.limiter, caller.key
    elif (request_class := scope.pop("queued", None)) is not None:
        request_class.promised -= 1


async def pace_stream(scope: Scope, chunks: AsyncIterable[bytes], *, is_compressed: bool) -> AsyncIterator[bytes]:
    """The chunks of a stored file, whose request has released its slot, no faster than its caller's share of the time
    allows. `is_compressed`: they will be, on their way out.
    """
    payer: tuple[Limiter, Hashable] | None = scope.get("payer")
    seconds_per_byte = _SECONDS_PER_BYTE + (_SECONDS_PER_COMPRESSED_BYTE if is_compressed else 0.0)
    async for chunk in chunks:
        if payer is not None:
            limiter, caller = payer
            await limiter.pace(caller, len(chunk) * seconds_per_byte)
        yield chunk
