"""What a request gets before anything is started for it: an answer from memory, a refusal, or its way to the layers.

Our server asks while it is still reading the connection; under any other server the application asks first of all.
"""

from collections.abc import Collection, Iterable, Mapping
from itertools import cycle
from time import perf_counter
from typing import NamedTuple

from starlette.types import ASGIApp, Receive, Scope, Send

from app.kernel.auth import Authenticator
from app.kernel.fairness.ticket import MAX_RETRY_AFTER, Overloaded
from app.kernel.headers.response_head import Finished
from app.kernel.headers.session_cookie import SessionCookie
from app.kernel.http.prepared_problem import PreparedProblem, Refused
from app.kernel.middleware.admission import Admission
from app.kernel.middleware.request_context import RequestContext, trace_parent_of
from app.kernel.middleware.response_cache import SELECTING_FIELDS, CachedRead, chosen, key_of
from app.kernel.middleware.security_headers import SecurityHeaders
from app.kernel.rate_limits import RateLimits
from app.kernel.request.state import RequestState, state_of
from app.kernel.resources import Resources


class LocalRead(NamedTuple):
    """What a request for a cached answer says of itself. Whether it gets one is asked each time.

    `token` is its credential (`RequestState.credential`).
    """

    read: CachedRead
    token: bytes
    fields: Mapping[bytes, bytes]


class Edge:
    """The ASGI application in front of `layers`, for HTTP alone. What it decides by itself, it decides in the order of
    the layers and with the same objects. A request that it hands on has at most got its slot from it.

    It answers what `reads` declare, each for `cost` units of the quota. Requests for `oauth_paths` are refused by the
    layers, in OAuth's form.
    """

    def __init__(
        self,
        layers: ASGIApp,
        context: RequestContext,
        admission: Admission,
        authenticator: Authenticator,
        cookie: SessionCookie,
        limits: RateLimits,
        *,
        resources: Resources,
        reads: Iterable[CachedRead],
        cost: float,
        oauth_paths: Collection[str] = (),
    ) -> None:
        self._layers = layers
        self._context = context
        self._admission = admission
        self._cached_principal = authenticator.cached_principal
        self._credential_of = cookie.credential_of
        self._buckets = limits.buckets
        self._get_local = resources.cache.get_local
        self._shares = admission.shares
        self._reads = {read.path: read for read in reads}
        self._cost = cost
        self._oauth_paths = frozenset(oauth_paths)
        self._refusal = PreparedProblem(Overloaded(), SecurityHeaders(resources.http).added_to(()))
        # Refused clients come back at different times.
        self._retry_after = cycle(range(1, MAX_RETRY_AFTER + 1))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Our server has asked already.
        if not state_of(scope).is_decided:
            decision = self.decide(scope)
            if isinstance(decision, Refused):
                await decision.send(send)
                return
            if decision is not None:
                await _send_finished(decision, send)
                return
        await self._layers(scope, receive, send)

    def decide(self, scope: Scope) -> Finished | Refused | None:
        """What a request gets at once; None: the layers have to find it. To be asked once.

        Token, scopes, quota, the answer in memory; then a slot, or room in the queue, as soon as slots are scarce.
        """
        state = state_of(scope)
        state.is_decided = True
        state.credential = self._credential_of(state.headers)
        request = self._recognize(state, scope)
        if request is not None:
            finished = self.answer(request)
            if finished is not None:
                return finished
        admission = self._admission
        if (
            admission.is_saturated
            and scope["path"] not in self._oauth_paths
            and not self._is_in_memory(state, scope)
            and not admission.admits(state, scope)
        ):
            request_id = self._context.new_id(state.headers).encode()
            return Refused(self._refusal, request_id, next(self._retry_after))
        return None

    def repeatable(self, scope: Scope) -> LocalRead | None:
        """What the same bytes ask for when they come again, with those fields alone that the answer depends on.

        None: they name this one request, or the answer is none of those in memory.
        """
        state = state_of(scope)
        request = self._recognize(state, scope)
        fields = state.headers
        if request is None or b"x-request-id" in fields or b"traceparent" in fields:
            return None
        return LocalRead(
            request.read, request.token, {name: fields[name] for name in SELECTING_FIELDS if name in fields}
        )

    def answer(self, request: LocalRead) -> Finished | None:
        """The answer as of now; None: the layers have to find it."""
        started = perf_counter()
        read = request.read
        fields = request.fields
        principal = self._cached_principal(request.token)
        if principal is None or not read.scopes <= principal.scopes:
            return None
        bucket = self._buckets.get(principal.quota_key)
        if bucket is None or bucket.tokens - self._cost < bucket.low:
            return None
        answer = self._get_local(principal.cache_key + read.path)
        picked = chosen(answer, fields) if answer is not None else None
        if picked is None:
            return None
        status, head, body = picked
        bucket.tokens -= self._cost
        self._shares.last_caller = principal.user_id
        request_id = self._context.new_id(fields)
        (policy, shown), (quota, left) = bucket.headers()
        start = b"%bx-request-id: %b\r\n%b: %b\r\n%b: %b\r\n" % (
            head.rendered, request_id.encode(), policy, shown, quota, left
        )  # fmt: skip
        trace = trace_parent_of(fields)
        seconds = perf_counter() - started
        self._context.record("GET", read.path, status, seconds, principal, request_id=request_id, trace=trace)
        return start, body

    def _recognize(self, state: RequestState, scope: Scope) -> LocalRead | None:
        """What a usual request for a cached answer asks for; None: only the layers know what it gets."""
        read = self._reads.get(scope["path"])
        if (
            read is None
            or scope["method"] != "GET"
            or scope["query_string"]
            # The layers may refuse another spelling of the path.
            or b"%" in (scope.get("raw_path") or b"")
        ):
            return None
        fields = state.headers
        token = state.credential
        if (
            token is None
            or state.repeated_header is not None
            # A body, or a guard that only the layers look at.
            or b"content-length" in fields
            or b"transfer-encoding" in fields
            or b"expect" in fields
            or b"if-match" in fields
        ):
            return None
        return LocalRead(read, token, fields)

    def _is_in_memory(self, state: RequestState, scope: Scope) -> bool:
        """Whether the layers find the answer in memory. That is given even when all slots are taken, since refusing
        would cost as much.
        """
        read = self._reads.get(scope["path"])
        if read is None or scope["method"] not in {"GET", "HEAD"}:
            return False
        principal = self._cached_principal(state.credential) if state.credential is not None else None
        return principal is not None and self._get_local(key_of(principal, read, scope)) is not None


async def _send_finished(finished: Finished, send: Send) -> None:
    """For other servers, which render the head by themselves."""
    start, body = finished
    status_line, *lines = start.removesuffix(b"\r\n").split(b"\r\n")
    headers = [tuple(line.split(b": ", 1)) for line in lines]
    await send({"type": "http.response.start", "status": int(status_line.split(b" ")[1]), "headers": headers})
    await send({"type": "http.response.body", "body": body})
