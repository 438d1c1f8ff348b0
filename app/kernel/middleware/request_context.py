"""The outermost layer: identity, deadline, log line, metrics and headers of a request, and the answer to its
failures.
"""

import asyncio
import os
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from itertools import count
from time import perf_counter
from typing import Any

from prometheus_client import Counter, Gauge, Histogram
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.kernel.errors import AppError, PayloadTooLarge
from app.kernel.http import check_path, problem_response
from app.kernel.middleware.oauth_errors import OAuthErrors
from app.kernel.middleware.security_headers import SecurityHeaders
from app.kernel.observability.access_log import UNMATCHED, AccessLog, logged_path
from app.kernel.observability.telemetry import DURATION_BUCKETS, get_logger, request_id_var, trace_parent_var
from app.kernel.request.principal import Principal
from app.kernel.request.state import RequestState, ignore_header, state_of
from app.kernel.settings import HttpSettings

_logger = get_logger(__name__)
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_TRACE_PARENT = re.compile(rb"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_CLIENT_CLOSED_REQUEST = 499
_SERVER_ERROR = 500

_duration = Histogram(
    "onehop_http_server_request_duration_seconds",
    "Time from the first byte read of a request to the last byte written of its response, in seconds.",
    ["http_request_method", "http_route", "http_response_status_code"],
    buckets=DURATION_BUCKETS,
)
_active = Gauge("onehop_http_server_active_requests", "Requests in flight.", multiprocess_mode="livesum")
_disconnects = Counter("onehop_http_server_client_disconnects", "Clients that disconnected before their response.")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
# The target of `OPTIONS *`; other methods do not get here with it.
_WHOLE_SERVER = "*"


class RequestContext:
    """`routes` maps an endpoint function, or a mounted application, to its path template, the label of its metrics.
    `oauth_paths` are those whose errors have OAuth's form.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: HttpSettings,
        access_log: AccessLog | None,
        routes: Mapping[Any, str],
        *,
        oauth_paths: Collection[str] = (),
    ) -> None:
        self._app = app
        self._oauth_paths = frozenset(oauth_paths)
        self._max_body_bytes = settings.max_body_bytes
        self._security = SecurityHeaders(settings)
        self._access_log = access_log
        self._routes = routes
        self._prefix = os.urandom(6).hex()
        self._numbers = count(1)
        self._observers: dict[tuple[str, str, int], Any] = {}
        self._active = 0

    def sample(self) -> None:
        """Sets the gauges."""
        _active.set(self._active)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        oauth = OAuthErrors(send) if scope["path"] in self._oauth_paths else None
        if oauth is not None:
            send = oauth.send
        started = perf_counter()
        state = state_of(scope)
        request_id = self.new_id(state.headers)
        request_id_var.set(request_id)
        trace_parent_var.set(trace_parent_of(state.headers))
        is_head = scope["method"] == "HEAD"
        if is_head:
            scope["method"] = "GET"
            # It is defined for GET alone (RFC 9110, section 14.2).
            ignore_header(scope, b"range")
        tracker = _ResponseTracker(state, send, (b"x-request-id", request_id.encode()), is_head=is_head)
        self._active += 1
        try:
            await self._answer(state, scope, receive, tracker)
        finally:
            self._active -= 1
            state.release_slot()
            # Its traceback refers to the state: a reference cycle that would hold the whole request.
            state.authentication_error = None
            route = state.route or self._routes.get(scope.get("endpoint"), UNMATCHED)
            method = "HEAD" if is_head else scope["method"]
            status = oauth.status if oauth is not None and oauth.status else tracker.status
            path = scope["path"] if route == UNMATCHED else None
            seconds = perf_counter() - started
            trace = trace_parent_var.get()
            self.record(method, route, status, seconds, state.principal, request_id=request_id, trace=trace, path=path)

    def new_id(self, headers: Mapping[bytes, bytes]) -> str:
        """The id of a request: the one that the client gave, or a new one."""
        given = headers.get(b"x-request-id")
        if given is not None and _REQUEST_ID.fullmatch(given):
            return given.decode()
        return f"{self._prefix}-{next(self._numbers):x}"

    async def _answer(self, state: RequestState, scope: Scope, receive: Receive, tracker: "_ResponseTracker") -> None:
        try:
            state.check_headers()
            check_path(scope.get("raw_path") or b"")
            length = state.headers.get(b"content-length")
            if length is not None and length.isdigit() and int(length) > self._max_body_bytes:
                # Refused before a byte of it is read. The server reads over the rest: were the connection closed,
                # the client would often see a reset before the answer.
                raise PayloadTooLarge  # noqa: TRY301 - answered as those from inside
            if scope["path"] == _WHOLE_SERVER:
                await self._answer_for_server(scope, receive, tracker)
            elif tracker.answered is not None:
                await self._answer_head(scope, receive, tracker, tracker.answered)
            else:
                await self._app(scope, receive, tracker.send)
        except asyncio.CancelledError:
            tracker.status = tracker.status or _CLIENT_CLOSED_REQUEST
            _disconnects.inc()
            raise
        except ClientDisconnect:
            # The framework may have answered 500, which no client is there to read.
            tracker.status = _CLIENT_CLOSED_REQUEST
            _disconnects.inc()
        except AppError as error:
            await self._answer_problem(error, scope, receive, tracker)
        except Exception as error:
            _logger.exception("http.request_failed", method=scope["method"], path=logged_path(scope["path"]))
            if tracker.status == 0:
                await self._answer_problem(AppError(), scope, receive, tracker)
            elif tracker.status != _SERVER_ERROR:
                # Half an answer is out; only a broken connection tells the client that the rest is missing.
                raise error  # noqa: TRY201 - the name says what is raised

    async def _answer_head(
        self, scope: Scope, receive: Receive, tracker: "_ResponseTracker", is_answered: asyncio.Event
    ) -> None:
        """Runs the application until the answer's head is out; a stream would go on behind it without a reader."""
        work = asyncio.ensure_future(self._app(scope, receive, tracker.send))
        answered = asyncio.ensure_future(is_answered.wait())
        try:
            await asyncio.wait({work, answered}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            answered.cancel()
            if not work.done():
                work.cancel()
            with suppress(asyncio.CancelledError):
                await work

    async def _answer_for_server(self, scope: Scope, receive: Receive, tracker: "_ResponseTracker") -> None:
        """What the server as a whole can do (RFC 9110, section 9.3.7)."""
        state_of(scope).route = _WHOLE_SERVER
        answer = Response(status_code=204, headers={"Allow": ", ".join(sorted(_METHODS)), "Cache-Control": "no-store"})
        await answer(scope, receive, self._security.wrap(tracker.send))

    async def _answer_problem(
        self, error: AppError, scope: Scope, receive: Receive, tracker: "_ResponseTracker"
    ) -> None:
        """A problem of a layer outside the one that adds the security headers."""
        await problem_response(error)(scope, receive, self._security.wrap(tracker.send))

    def record(
        self,
        method: str,
        route: str,
        status: int,
        seconds: float,
        principal: Principal | None,
        *,
        request_id: str,
        trace: str | None,
        path: str | None = None,
    ) -> None:
        """Counts a request that is over, and writes its line. `path` is that of a request without a route."""
        key = (method if method in _METHODS else "OTHER", route, status)
        observe = self._observers.get(key)
        if observe is None:
            observe = self._observers[key] = _duration.labels(key[0], route, str(status)).observe
        observe(seconds)
        if self._access_log is not None:
            self._access_log.write(
                method,
                route,
                status,
                seconds,
                principal.user_id if principal is not None else None,
                request_id=request_id,
                actor_id=principal.actor_id if principal is not None else None,
                trace=trace,
                path=path,
            )


def trace_parent_of(headers: Mapping[bytes, bytes]) -> str | None:
    """The trace that the request belongs to, as `traceparent` has it (W3C Trace Context)."""
    given = headers.get(b"traceparent")
    return given.decode() if given is not None and _TRACE_PARENT.fullmatch(given) else None


class _ResponseTracker:
    """One answer on its way out. The answer to HEAD ends with its head."""

    __slots__ = ("_request_id", "_send", "_state", "answered", "status")

    def __init__(self, state: RequestState, send: Send, request_id: tuple[bytes, bytes], *, is_head: bool) -> None:
        self._state = state
        self._send = send
        self._request_id = request_id
        self.answered = asyncio.Event() if is_head else None
        self.status = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            # A client that does not read its answer must not hold what others need to get theirs.
            self._state.release_slot()
            self.status = message["status"]
            # Not in place: the list may be that of a cached answer.
            quota = self._state.quota
            if quota is None:
                message["headers"] = [*message["headers"], self._request_id]
            else:
                message["headers"] = [*message["headers"], self._request_id, *quota.headers()]
            if self.answered is not None:
                message["whole_body"] = None
            await self._send(message)
            if self.answered is not None:
                await self._send({"type": "http.response.body", "body": b""})
                self.answered.set()
        elif self.answered is None:
            await self._send(message)
