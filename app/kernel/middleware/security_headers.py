"""What a browser must not do with our answers; behind the response cache, so that a cached answer has it already."""

from collections.abc import Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.kernel.headers.response_head import SECURITY_HEADERS
from app.kernel.settings import HttpSettings

_HSTS = (b"strict-transport-security", b"max-age=31536000; includeSubDomains")


class SecurityHeaders:
    """The headers. `wrap` and `added_to` are for answers that do not pass the layer."""

    def __init__(self, settings: HttpSettings) -> None:
        self._headers = [*SECURITY_HEADERS, *([_HSTS] if settings.hsts else [])]
        self._names = frozenset(name for name, _ in self._headers)

    def added_to(self, headers: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """A new list of `headers` and those of ours that are missing."""
        present = dict(headers)
        if self._names.isdisjoint(present):
            return [*headers, *self._headers]
        return [*headers, *(header for header in self._headers if header[0] not in present)]

    def wrap(self, send: Send) -> Send:
        """`send`, with the headers added to the start of the answer."""

        async def send_secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = self.added_to(message["headers"])
            await send(message)

        return send_secured


class SecurityHeadersLayer:
    """Adds them to what the framework answers."""

    def __init__(self, app: ASGIApp, settings: HttpSettings) -> None:
        self._app = app
        self._headers = SecurityHeaders(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, self._headers.wrap(send))
