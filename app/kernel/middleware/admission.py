"""Lets in as many requests as can be worked on, lets a few wait shortly, and refuses the rest early and cheaply."""

import random
from collections.abc import Callable, Collection, Hashable
from itertools import cycle
from time import perf_counter

import orjson
from starlette.types import ASGIApp, Receive, Scope, Send

from app.kernel.auth import Principal
from app.kernel.callers import Caller, caller_var
from app.kernel.errors import Unavailable
from app.kernel.http import PROBLEM_MEDIA_TYPE
from app.kernel.middleware.gate import AdaptiveLimit, FixedLimit, Gate, Share
from app.kernel.settings import HttpSettings

# These tell whether the process lives and what it does, so they must answer when nothing else can.
_ALWAYS_ADMITTED = frozenset({"/livez", "/readyz", "/metrics"})
# What reads cannot take from writes and writes not from reads; the rest is for who comes first.
_RESERVED = 0.4
_LOWEST_LIMIT = 16
_FIRST_LIMIT = 32
_MAX_RETRY_AFTER = 3
_READS = frozenset({"GET", "HEAD"})


class Overloaded(Unavailable):
    """The server works at its capacity. Try again after `Retry-After`."""

    code = "overloaded"
    title = "The service is at capacity"


class Admission:
    """Reads and writes have places by what latency allows, log-ins as many as there are hashes at one time. A request
    that waits for something outside of this process gives its place back (`leave_place`).

    `remembered` are the paths whose answers may come from memory, and `lies_in_memory` tells of a request whether its
    answer does: that is given even when all places are taken, since refusing would cost as much. Only what is not found
    there needs a place (`take_place`). `log_ins` are methods and paths of requests that hash a password.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: HttpSettings,
        *,
        remembered: Collection[str],
        lies_in_memory: Callable[[Scope], bool],
        log_ins: Collection[tuple[str, str]],
        max_log_ins: int,
    ) -> None:
        self._app = app
        # Whether somebody lately found no place; only then is it worth asking `refuses` first.
        self.is_pressed = False
        highest = settings.max_in_flight
        limit = AdaptiveLimit(lowest=min(_LOWEST_LIMIT, highest), start=min(_FIRST_LIMIT, highest), highest=highest)
        feel = self._feel_pressure
        parked = 2 * settings.max_waiting
        work = Gate(
            "work", limit, seats=settings.max_waiting, max_wait=settings.max_wait, max_parked=parked, on_full=feel
        )
        self._reads = Share("read", work, _RESERVED)
        self._writes = Share("write", work, _RESERVED)
        self._log_ins = Share(
            "log_in", Gate("log_in", FixedLimit(max_log_ins), seats=0, max_wait=0, max_parked=parked, on_full=feel)
        )
        self._gates = (work, self._log_ins.gate)
        self._remembered = frozenset(remembered)
        self._lies_in_memory = lies_in_memory
        self._log_in_routes = frozenset(log_ins)

    def sample(self) -> None:
        """Brings the metrics up to date."""
        for gate in self._gates:
            gate.sample()
        self.is_pressed = not all(gate.has_place for gate in self._gates)

    def refuses(self, scope: Scope) -> bool:
        """Whether a request finds neither a place nor a seat; it may be asked before anything is done for it.

        If not, it has one of both from now on, until `leave_place`.
        """
        if "place" in scope or "seat" in scope:
            return False
        path = scope["path"]
        if path in _ALWAYS_ADMITTED:
            return False
        if path in self._remembered and scope["method"] in _READS and self._lies_in_memory(scope):
            return False
        share = self._share_of(scope)
        if share.gate.enters(share):
            scope["place"] = share
            scope["admitted_at"] = perf_counter()
        elif share.gate.has_seat(share):
            share.coming += 1
            scope["seat"] = share
        else:
            return True
        return False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _ALWAYS_ADMITTED:
            await self._app(scope, receive, send)
            return
        if "seat" in scope:
            await take_place(scope)
        elif "place" not in scope:
            share = self._share_of(scope)
            if share is self._reads and scope["path"] in self._remembered:
                # What is found in memory needs no place.
                scope["wanted_place"] = share
            elif share.gate.enters(share):
                scope["place"] = share
                scope["admitted_at"] = perf_counter()
            else:
                scope["wanted_place"] = share
                await take_place(scope)
        # The outermost layer leaves the place, because the server may have taken it (`refuses`).
        await self._app(scope, receive, send)

    def _feel_pressure(self) -> None:
        self.is_pressed = True

    def _share_of(self, scope: Scope) -> Share:
        if scope["method"] in _READS:
            return self._reads
        return self._log_ins if (scope["method"], scope["path"]) in self._log_in_routes else self._writes


async def take_place(scope: Scope) -> None:
    """Waits for a place, if the request goes on without one so far.

    Raises:
        Overloaded: there is none.
    """
    share: Share | None = scope.pop("wanted_place", None)
    if share is None:
        share = scope.pop("seat", None)
        if share is None:
            return
        share.coming -= 1
        has_seat = True
    else:
        has_seat = False
    gate = share.gate
    if not gate.enters(share) and not ((has_seat or gate.has_seat(share)) and await gate.waits(share)):
        raise Overloaded(retry_after=random.randint(1, _MAX_RETRY_AFTER))  # noqa: S311 - jitter, not a secret
    scope["place"] = share
    scope["admitted_at"] = perf_counter()
    await hold_place(scope)


async def hold_place(scope: Scope) -> None:
    """Counts a place as its caller's, once both are known; one that is not fair is given up and waited for.

    The caller is the user, or the network of a client that has not proved to be one (`scope["network"]`).

    Raises:
        Overloaded: the caller has half of the places, and others want some.
    """
    share: Share | None = scope.get("place")
    if share is None or "caller" in scope:
        return
    principal: Principal | None = scope.get("principal")
    key: Hashable = principal.user_id if principal is not None else scope.get("network")
    if key is None:
        return
    if not await share.gate.hold(share, key):
        # It has given its place up already.
        del scope["place"]
        raise Overloaded(retry_after=random.randint(1, _MAX_RETRY_AFTER))  # noqa: S311 - jitter, not a secret
    caller = scope["caller"] = Caller(key)
    caller_var.set(caller)


def change_caller(scope: Scope) -> None:
    """The client has proved to be a user: its place, if it has one, is no longer its network's (`hold_place`)."""
    caller: Caller | None = scope.pop("caller", None)
    if caller is not None:
        scope["place"].gate.release(caller.key)


def leave_place(scope: Scope) -> None:
    """Gives the place back, if the request has one. From now on it only sends, or waits for what others do."""
    share: Share | None = scope.pop("place", None)
    if share is not None:
        now = perf_counter()
        seconds = now - scope["admitted_at"]
        caller: Caller | None = scope.pop("caller", None)
        if caller is not None:
            # That says nothing of the load.
            seconds -= caller.waited
        share.gate.observe(scope.get("endpoint") or scope.get("route_template"), seconds, now)
        share.gate.leave(share)
        if caller is not None:
            share.gate.release(caller.key)
    elif (share := scope.pop("seat", None)) is not None:
        share.coming -= 1


class Refusal:
    """The answer to what finds no place, finished but for the request's id. `headers` are those of every answer."""

    def __init__(self, headers: list[tuple[bytes, bytes]]) -> None:
        error = Overloaded()
        content = {
            "type": f"/problems/{error.code}",
            "title": error.title,
            "status": error.status,
            "detail": error.title,
            "instance": "urn:onehop:request:%b",
            "code": error.code,
            "request_id": "%b",
        }
        self._body = orjson.dumps(content)
        self._size = len(self._body) - 2 * len(b"%b")
        common = [(b"content-type", PROBLEM_MEDIA_TYPE.encode()), (b"cache-control", b"no-store"), *headers]
        heads = [[*common, (b"retry-after", b"%d" % value)] for value in range(1, _MAX_RETRY_AFTER + 1)]
        self._heads = cycle(heads)
        lines = [b"".join(b"%b: %b\r\n" % field for field in head) for head in heads]
        tail = b"content-length: %d\r\nx-request-id: %b\r\n\r\n"
        self._raw_heads = cycle([b"HTTP/1.1 503 Service Unavailable\r\n" + line + tail for line in lines])

    def raw(self, request_id: bytes) -> bytes:
        """All of it as it goes over the wire, in HTTP/1.1."""
        head = next(self._raw_heads) % (self._size + 2 * len(request_id), request_id)
        return head + self._body % (request_id, request_id)

    async def send(self, request_id: bytes, send: Send) -> None:
        length = b"%d" % (self._size + 2 * len(request_id))
        headers = [*next(self._heads), (b"content-length", length), (b"x-request-id", request_id)]
        await send({"type": "http.response.start", "status": Overloaded.status, "headers": headers})
        await send({"type": "http.response.body", "body": self._body % (request_id, request_id)})
