"""Answers repeated reads from finished bytes, so that the framework does not run; adds entity tags to all other
reads.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.kernel.cache import CachedAnswer
from app.kernel.errors import PreconditionFailed
from app.kernel.headers.codings import LARGEST_AT_ONCE, gzip_etag
from app.kernel.headers.response_head import PreparedHead, send_whole
from app.kernel.http import body_etag, matches_any, matches_strongly, problem_response
from app.kernel.ids import UserId
from app.kernel.middleware.deadline import TimedRequest
from app.kernel.middleware.security_headers import SecurityHeaders
from app.kernel.request.principal import Principal
from app.kernel.request.state import state_of
from app.kernel.resources import Resources

# What `chosen` looks at.
SELECTING_FIELDS = (b"accept-encoding", b"if-none-match")
_MAX_QUERY_BYTES = 256
_OK = 200
_NOT_MODIFIED = 304
_NO_STORE = (b"cache-control", b"no-store")
_REVALIDATE = (b"cache-control", b"private, no-cache")
_NEVER_STORED_PREFIX = "/v1/auth/"
# Of long answers that are for everybody, with their compressed forms.
_MOST_PUBLIC_BYTES = 8 * 1024 * 1024


class Handler(Protocol):
    """A route's function that needs only the principal."""

    def __call__(self, *, principal: Principal, resources: Resources) -> Awaitable[Response]: ...


@dataclass(frozen=True, slots=True)
class CachedRead:
    """Declares that the answers of a GET may be cached for each caller, in the router that owns it.

    `tags` names, for a caller, what the answer is made of; forgetting any of them ends the cached answer. A miss
    without a query calls `handler` directly; without one, or with a query, the framework finds the answer.
    """

    path: str
    scopes: frozenset[str]
    tags: Callable[[UserId], tuple[str, ...]]
    handler: Handler | None = None


class ResponseCache:
    """Serves the GETs that the routers declared cacheable, for each caller apart.

    A hit needs the same scopes as the route, which are part of the declaration.
    """

    def __init__(self, app: ASGIApp, resources: Resources, reads: Iterable[CachedRead]) -> None:
        self._app = app
        self._resources = resources
        self._cache = resources.cache
        self._security = SecurityHeaders(resources.http)
        self._public = _PublicAnswers()
        self._reads = {read.path: read for read in reads}
        # Up to Python 3.11 each question for the running loop is a system call.
        self._loop = asyncio.get_running_loop()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "GET":
            await self._app(scope, receive, _Uncached(send).send)
            return
        read = self._reads.get(scope["path"])
        state = state_of(scope)
        principal = state.principal
        if read is None or principal is None or not read.scopes <= principal.scopes:
            await state.acquire_slot()
            await self._app(scope, receive, _Conditional(self, scope, send).send)
            return
        key = key_of(principal, read, scope)
        answer = self._cache.get_local(key)
        if answer is None:
            await state.acquire_slot()
            await self._answer_miss(scope, receive, send, read, principal, key)
        else:
            state.route = read.path
            await self.send_answer(answer, scope, send)

    async def _answer_miss(
        self, scope: Scope, receive: Receive, send: Send, read: CachedRead, principal: Principal, key: str
    ) -> None:
        state = state_of(scope)
        state.charge(1.0)
        capture = _Capture(self, scope, send)
        timed = TimedRequest(self._loop, scope, receive, send, self._resources.http.request_timeout)
        if not self._cache.is_under_way(key):
            timed.on_gone = partial(self._leave, timed, key)
        fill: Callable[[], Awaitable[CachedAnswer | None]]
        handler = None if scope["query_string"] else read.handler
        if handler is not None:
            state.route = read.path
            fill = partial(self._ask_handler, handler, principal)
        else:
            fill = partial(self._ask_framework, scope, timed, capture)
        answer = None
        try:
            if len(scope["query_string"]) <= _MAX_QUERY_BYTES:
                answer = await self._cache.get_or_fill(
                    key, read.tags(principal.user_id), fill, renewable=handler is not None
                )
        except asyncio.CancelledError as error:
            timed.explain(error)
            raise
        finally:
            timed.stop_clock()
            # It knows the request: a circle that only the collector would find.
            timed.on_gone = None
        if answer is not None:
            state.route = read.path
            await self.send_answer(answer, scope, send)
        elif not capture.is_used:
            await self._app(scope, timed.receive, _Conditional(self, scope, send).send)

    async def _ask_framework(self, scope: Scope, timed: TimedRequest, capture: "_Capture") -> CachedAnswer | None:
        # There it gets another clock.
        timed.stop_clock()
        await self._app(scope, timed.receive, capture.send)
        return capture.answer

    async def _ask_handler(self, handler: Handler, principal: Principal) -> CachedAnswer:
        response = await handler(principal=principal, resources=self._resources)
        return _finished(self._security.added_to(response.raw_headers), bytes(response.body))

    async def send_answer(self, answer: CachedAnswer, scope: Scope, send: Send) -> None:
        """Sends what of a finished answer its request wants, by the order of RFC 9110, section 13.2.2."""
        found = state_of(scope).headers
        if_match = found.get(b"if-match")
        if if_match is not None and not matches_strongly(if_match, answer.etag):
            await problem_response(PreconditionFailed())(scope, _nothing, self._security.wrap(send))
            return
        status, head, body = await _chosen_in_time(answer, found)
        start = {"type": "http.response.start", "status": status, "headers": head.headers, "prepared": head}
        await send_whole(start, body, send)

    async def send_new(self, answer: CachedAnswer, scope: Scope, send: Send) -> None:
        """Sends an answer that was made for this request alone. Of those that are for everybody, such as the document
        of the API, the compressed forms are kept.
        """
        if len(answer.body) > LARGEST_AT_ONCE and not _is_private(answer):
            answer = self._public.setdefault(answer)
        await self.send_answer(answer, scope, send)

    def _leave(self, timed: TimedRequest, key: str) -> None:
        """The client of an answer has gone, but others may wait for the same one."""
        if not self._cache.is_shared(key):
            timed.give_up(ClientDisconnect)


def key_of(principal: Principal, read: CachedRead, scope: Scope) -> str:
    """Of the answer to this request in the cache."""
    key = principal.cache_key + read.path
    query = scope["query_string"]
    return f"{key}?{query.decode('latin-1')}" if query else key


def chosen(answer: CachedAnswer, found: Mapping[bytes, bytes]) -> tuple[int, PreparedHead, bytes] | None:
    """Status, head and body for a request with the headers `found`, whose `If-Match` is met; None: a form of it has to
    be made first.
    """
    accept_encoding = found.get(b"accept-encoding")
    if accept_encoding is not None:
        form = answer.accepted_by(accept_encoding)
        if form is None:
            return None
        answer = form
    if_none_match = found.get(b"if-none-match")
    if if_none_match is not None and matches_any(if_none_match, answer.etag):
        return _NOT_MODIFIED, answer.unchanged, b""
    return _OK, answer.head, answer.body


async def _chosen_in_time(answer: CachedAnswer, found: Mapping[bytes, bytes]) -> tuple[int, PreparedHead, bytes]:
    """As `chosen`, after the form has been made."""
    picked = chosen(answer, found)
    if picked is not None:
        return picked
    if_none_match = found.get(b"if-none-match")
    if if_none_match is not None and matches_any(if_none_match, gzip_etag(answer.etag)):
        return _NOT_MODIFIED, answer.unchanged_compressed, b""
    form = await answer.compress_aside()
    if if_none_match is not None and matches_any(if_none_match, form.etag):
        return _NOT_MODIFIED, form.unchanged, b""
    return _OK, form.head, form.body


class _Uncached:
    """The answer to a write: no cache keeps it, unless the route says otherwise."""

    __slots__ = ("_send",)

    def __init__(self, send: Send) -> None:
        self._send = send

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start" and not _has(message["headers"], b"cache-control"):
            message["headers"] = [*message["headers"], _NO_STORE]
        await self._send(message)


class _Conditional:
    """The answer to a read. A whole 200 that may be stored gets an entity tag, 304 where the caller has it already, 412
    where it is not the one that the caller means, and the form that the caller accepts.
    """

    __slots__ = ("_cache", "_scope", "_send", "_start")

    def __init__(self, cache: ResponseCache, scope: Scope, send: Send) -> None:
        self._cache = cache
        self._scope = scope
        self._send = send
        self._start: Message | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            fields = dict(message["headers"])
            control = fields.get(b"cache-control")
            if control is None:
                stored = message["status"] == _OK and not self._scope["path"].startswith(_NEVER_STORED_PREFIX)
                control = (_REVALIDATE if stored else _NO_STORE)[1]
                message["headers"] = [*message["headers"], (b"cache-control", control)]
            # What has no length is a stream, whose first part may come much later than its head.
            if message["status"] == _OK and control != _NO_STORE[1] and b"content-length" in fields:
                self._start = message
                return
        elif self._start is not None:
            start, self._start = self._start, None
            if not message.get("more_body", False):
                await self._send_whole(start, message)
                return
            await self._send(start)
        await self._send(message)

    async def _send_whole(self, start: Message, message: Message) -> None:
        answer = _finished(list(start["headers"]), bytes(message.get("body", b"")))
        await self._cache.send_new(answer, self._scope, self._send)


class _Capture(_Conditional):
    """Keeps a whole 200 as `answer` instead of sending it; lets everything else through."""

    __slots__ = ("answer", "is_used")

    def __init__(self, cache: ResponseCache, scope: Scope, send: Send) -> None:
        super().__init__(cache, scope, send)
        self.answer: CachedAnswer | None = None
        self.is_used = False

    async def send(self, message: Message) -> None:
        self.is_used = True
        await super().send(message)

    async def _send_whole(self, start: Message, message: Message) -> None:
        self.answer = _finished(list(start["headers"]), bytes(message.get("body", b"")))


class _PublicAnswers:
    """Long answers that are the same for everybody, by their entity tags; those asked for last, up to some bytes."""

    def __init__(self) -> None:
        self._answers: OrderedDict[bytes, tuple[CachedAnswer, int]] = OrderedDict()
        self._bytes = 0

    def setdefault(self, answer: CachedAnswer) -> CachedAnswer:
        """The one that is kept with this tag and length, which is this one from now on if there is none."""
        key = b"%b %d" % (answer.etag, len(answer.body))
        kept = self._answers.get(key)
        if kept is not None:
            self._answers.move_to_end(key)
            return kept[0]
        size = answer.size
        self._answers[key] = answer, size
        self._bytes += size
        while self._bytes > _MOST_PUBLIC_BYTES and len(self._answers) > 1:
            self._bytes -= self._answers.popitem(last=False)[1][1]
        return answer


def _is_private(answer: CachedAnswer) -> bool:
    return b"private" in dict(answer.head.headers).get(b"cache-control", b"private")


def _finished(headers: list[tuple[bytes, bytes]], body: bytes) -> CachedAnswer:
    """A whole 200 as it is kept; `headers` is taken over."""
    if not _has(headers, b"cache-control"):
        headers.append(_REVALIDATE)
    if not _has(headers, b"content-length"):
        headers.append((b"content-length", b"%d" % len(body)))
    etag = next((value for name, value in headers if name == b"etag"), None)
    if etag is None:
        etag = body_etag(body)
        headers.append((b"etag", etag))
    return CachedAnswer.of(headers, etag, body)


async def _nothing() -> Message:
    """For an answer that reads nothing of its request."""
    return {"type": "http.disconnect"}


def _has(headers: list[tuple[bytes, bytes]], wanted: bytes) -> bool:
    return wanted in dict(headers)
