"""Answers from memory while the server is still reading the connection: without a task, and without the layers.

Each step is one that a layer would take with the same object, in the same order. Whatever is not as usual (a token not
seen before, a quota that has to be asked for, no answer in memory) changes nothing and is left to the layers.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from time import perf_counter

from starlette.types import Scope

from app.kernel.auth import Authenticator
from app.kernel.cache import Cache
from app.kernel.fairness.time_shares import TimeShares
from app.kernel.headers.session_cookie import SessionCookie
from app.kernel.middleware.request_context import RequestContext
from app.kernel.middleware.response_cache import SELECTING_FIELDS, CachedRead, chosen, key_of
from app.kernel.rate_limits import RateLimits
from app.kernel.request.state import RequestState

# What goes over the wire but for the server's own headers: the head without its last line end, and the body.
Finished = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class LocalRead:
    """What a request for a cached answer says of itself. Whether it gets one is asked each time.

    `token` is its credential (`SessionCookie.credential_of`).
    """

    read: CachedRead
    token: bytes
    fields: Mapping[bytes, bytes]

    def repeatable(self) -> "LocalRead | None":
        """What the same bytes ask for when they come again, with those fields alone that the answer depends on.

        None: they name this one request.
        """
        if b"x-request-id" in self.fields or b"traceparent" in self.fields:
            return None
        return replace(self, fields={name: self.fields[name] for name in SELECTING_FIELDS if name in self.fields})


class FastPath:
    """Takes what `reads` declare; each answer costs its caller `cost` units of the quota."""

    def __init__(
        self,
        context: RequestContext,
        authenticator: Authenticator,
        cookie: SessionCookie,
        limits: RateLimits,
        cache: Cache,
        shares: TimeShares,
        *,
        reads: Iterable[CachedRead],
        cost: float,
    ) -> None:
        self._context = context
        self._cached_principal = authenticator.cached_principal
        self._credential_of = cookie.credential_of
        self._buckets = limits.buckets
        self._get_local = cache.get_local
        self._reads = {read.path: read for read in reads}
        self._cost = cost
        self._shares = shares

    def recognize(self, scope: Scope) -> LocalRead | None:
        """What a request without a body asks for, whose path is written as the router has it; None: the application
        has to find out.
        """
        read = self._reads.get(scope["path"])
        if read is None or scope["method"] != "GET" or scope["query_string"]:
            return None
        fields = scope["headers"]
        found = {name: value for name, value in fields}  # noqa: C416 - takes two thirds of the time of `dict(fields)`
        token = self._credential_of(found)
        if token is None or len(found) != len(fields) or b"content-length" in found or b"if-match" in found:
            return None
        return LocalRead(read, token, found)

    def answer(self, request: LocalRead) -> Finished | None:
        """The answer as of now; None: the application has to find it."""
        started = perf_counter()
        read = request.read
        principal = self._cached_principal(request.token)
        if principal is None or not read.scopes <= principal.scopes:
            return None
        bucket = self._buckets.get(principal.quota_key)
        if bucket is None or bucket.tokens - self._cost < bucket.low:
            return None
        answer = self._get_local(principal.cache_key + read.path)
        picked = chosen(answer, request.fields) if answer is not None else None
        if picked is None:
            return None
        status, head, body = picked
        bucket.tokens -= self._cost
        self._shares.last_caller = principal.user_id
        request_id = self._context.identify(request.fields)
        (policy, shown), (quota, left) = bucket.headers()
        start = b"%bx-request-id: %b\r\n%b: %b\r\n%b: %b\r\n" % (
            head.rendered, request_id, policy, shown, quota, left
        )  # fmt: skip
        self._context.record("GET", read.path, status, perf_counter() - started, principal)
        return start, body


class LocalAnswers:
    """What `reads` declare, as far as it lies in this process's memory."""

    def __init__(
        self, authenticator: Authenticator, cookie: SessionCookie, cache: Cache, reads: Iterable[CachedRead]
    ) -> None:
        self._cached_principal = authenticator.cached_principal
        self._credential_of = cookie.credential_of
        self._get_local = cache.get_local
        self._reads = {read.path: read for read in reads}

    def has(self, state: RequestState, scope: Scope) -> bool:
        """Whether the answer is there, and its caller's token was seen before."""
        read = self._reads.get(scope["path"])
        if read is None:
            return False
        credential = self._credential_of(state.headers)
        principal = self._cached_principal(credential) if credential is not None else None
        return principal is not None and self._get_local(key_of(principal, read, scope)) is not None
