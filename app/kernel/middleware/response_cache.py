"""Answers repeated reads from finished bytes, so that the framework does not run; adds entity tags to all other
reads.
"""

from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.kernel.auth import Principal
from app.kernel.cache import Cache, CachedAnswer, CachedRead
from app.kernel.http import body_etag, matches_any

_MAX_QUERY_BYTES = 256
_OK = 200
_NO_STORE = (b"cache-control", b"no-store")
_REVALIDATE = (b"cache-control", b"private, no-cache")
_NEVER_STORED_PREFIX = "/v1/auth/"


class ResponseCache:
    """Serves the GETs that the routers declared cacheable, for each caller apart.

    A hit needs the same scopes as the route, which are part of the declaration.
    """

    def __init__(self, app: ASGIApp, cache: Cache, reads: Iterable[CachedRead]) -> None:
        self._app = app
        self._cache = cache
        self._reads = {read.path: read for read in reads}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "GET":
            await self._app(scope, receive, send if scope["type"] != "http" else _Uncached(send).send)
            return
        read = self._reads.get(scope["path"])
        principal: Principal | None = scope.get("principal")
        if read is None or principal is None or not read.scopes <= principal.scopes:
            await self._app(scope, receive, _Conditional(scope, send).send)
            return
        query = scope["query_string"]
        key = principal.cache_key + read.path
        if query:
            key = f"{key}?{query.decode('latin-1')}"
        answer = self._cache.get_local(key)
        if answer is None:
            await self._answer_miss(scope, receive, send, read, principal, key)
        else:
            scope["route_template"] = read.path
            await _send_answer(answer, scope, send)

    async def _answer_miss(
        self, scope: Scope, receive: Receive, send: Send, read: CachedRead, principal: Principal, key: str
    ) -> None:
        capture = _Capture(scope, send)

        async def fill() -> CachedAnswer | None:
            await self._app(scope, receive, capture.send)
            return capture.answer

        answer = None
        if len(scope["query_string"]) <= _MAX_QUERY_BYTES:
            answer = await self._cache.get_or_fill(key, read.tags(principal.user_id), fill)
        if answer is not None:
            scope["route_template"] = read.path
            await _send_answer(answer, scope, send)
        elif not capture.is_used:
            await self._app(scope, receive, _Conditional(scope, send).send)


async def _send_answer(answer: CachedAnswer, scope: Scope, send: Send) -> None:
    if_none_match = scope["found_headers"].get(b"if-none-match")
    if if_none_match is not None and matches_any(if_none_match, answer.etag):
        await send({"type": "http.response.start", "status": 304, "headers": [(b"etag", answer.etag), _REVALIDATE]})
        await send({"type": "http.response.body", "body": b""})
        return
    await send({"type": "http.response.start", "status": _OK, "headers": answer.headers})
    await send({"type": "http.response.body", "body": answer.body})


class _Uncached:
    """The answer to a write: nobody keeps it, unless the route says otherwise."""

    __slots__ = ("_send",)

    def __init__(self, send: Send) -> None:
        self._send = send

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start" and not _has(message["headers"], b"cache-control"):
            message["headers"] = [*message["headers"], _NO_STORE]
        await self._send(message)


class _Conditional:
    """The answer to a read: a whole 200 gets an entity tag, and 304 where the caller has it already."""

    __slots__ = ("_scope", "_send", "_start")

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope = scope
        self._send = send
        self._start: Message | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = message["headers"]
            if not _has(headers, b"cache-control"):
                stored = message["status"] == _OK and not self._scope["path"].startswith(_NEVER_STORED_PREFIX)
                message["headers"] = [*headers, _REVALIDATE if stored else _NO_STORE]
            if message["status"] == _OK and (_REVALIDATE in message["headers"]):
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
        await _send_answer(_answer_of(start, message.get("body", b"")), self._scope, self._send)


class _Capture(_Conditional):
    """Keeps a whole 200 as `answer` instead of sending it; lets everything else through."""

    __slots__ = ("answer", "is_used")

    def __init__(self, scope: Scope, send: Send) -> None:
        super().__init__(scope, send)
        self.answer: CachedAnswer | None = None
        self.is_used = False

    async def send(self, message: Message) -> None:
        self.is_used = True
        await super().send(message)

    async def _send_whole(self, start: Message, message: Message) -> None:
        self.answer = _answer_of(start, message.get("body", b""))


def _answer_of(start: Message, body: bytes) -> CachedAnswer:
    headers = list(start["headers"])
    etag = next((value for name, value in headers if name == b"etag"), None)
    if etag is None:
        etag = body_etag(body)
        headers.append((b"etag", etag))
    return CachedAnswer(headers, etag, bytes(body))


def _has(headers: list[tuple[bytes, bytes]], wanted: bytes) -> bool:
    return any(name == wanted for name, _ in headers)
