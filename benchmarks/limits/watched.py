"""The product with a watch on its event loop: `GET /bench/stall` tells the longest stall since the last time, in ms."""

import asyncio
from time import perf_counter

from starlette.types import ASGIApp, Receive, Scope, Send

from app.main import create_app
from app.settings import load_settings

_TICK_SECONDS = 0.001


class _Watch:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._longest = 0.0
        self._task: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != "/bench/stall":
            await self._app(scope, receive, send)
            return
        if self._task is None:
            self._task = asyncio.create_task(self._watch())
        body = f"{self._longest * 1000:.3f}".encode()
        self._longest = 0.0
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _watch(self) -> None:
        while True:
            before = perf_counter()
            await asyncio.sleep(_TICK_SECONDS)
            self._longest = max(self._longest, perf_counter() - before - _TICK_SECONDS)


app = _Watch(create_app(load_settings()))
