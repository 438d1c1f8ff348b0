"""`/livez`, `/readyz` and `/metrics` of a process without an API.

They are answered from the event loop that does the process's work: if it hangs, nothing answers, and a probe that gets
no answer has failed. aiohttp serves them; it is here for webhooks already.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Literal

import orjson

from app.kernel.headers.codings import accepts_gzip
from app.kernel.observability.telemetry import CONTENT_TYPE_METRICS, render_metrics

# An API answers them too, whatever else it does not: they tell whether the process lives and what it does.
PROBE_PATHS = frozenset({"/livez", "/readyz", "/metrics"})
Check = Literal["ok", "degraded", "failing"]
Checks = Mapping[str, Check]
# Probes of several systems, or of a stranger, cost no more than one look a second.
_READY_SECONDS = 1.0


@asynccontextmanager
async def probes_served(
    host: str, port: int, *, live: Callable[[], Checks], ready: Callable[[], Awaitable[Checks]]
) -> AsyncIterator[None]:
    """Serves inside the block. Each path answers 200, or 503 if a check is failing; the body names all of them.

    Raises:
        OSError: nothing can listen there.
    """
    # A process that serves none is spared its import.
    from aiohttp import web  # noqa: PLC0415 - see above

    readiness = _Coalesced(ready)

    def answer(word: str, checks: Checks) -> web.Response:
        is_failing = "failing" in checks.values()
        body = orjson.dumps({"status": "failing" if is_failing else word, "checks": checks})
        headers = {"Content-Type": "application/json", "Cache-Control": "no-store"}
        return web.Response(status=503 if is_failing else 200, body=body, headers=headers)

    async def livez(_: web.Request) -> web.Response:
        return answer("alive", live())

    async def readyz(_: web.Request) -> web.Response:
        return answer("ready", await readiness())

    async def metrics(request: web.Request) -> web.Response:
        rendered = await asyncio.to_thread(render_metrics)
        headers = {"Content-Type": CONTENT_TYPE_METRICS, "Vary": "Accept-Encoding"}
        accepted = ", ".join(request.headers.getall("Accept-Encoding", ())).encode("utf-8", "surrogateescape")
        if rendered.compressed is None or not accepts_gzip(accepted):
            return web.Response(body=rendered.text, headers=headers)
        return web.Response(body=rendered.compressed, headers=headers | {"Content-Encoding": "gzip"})

    application = web.Application()
    application.add_routes([web.get("/livez", livez), web.get("/readyz", readyz), web.get("/metrics", metrics)])
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        yield
    finally:
        await runner.cleanup()


class _Coalesced:
    """Looks once for all requests of the same second."""

    def __init__(self, look: Callable[[], Awaitable[Checks]]) -> None:
        self._look = look
        self._lock = asyncio.Lock()
        self._found: Checks = {}
        self._looked_at = -_READY_SECONDS

    async def __call__(self) -> Checks:
        loop = asyncio.get_running_loop()
        async with self._lock:
            if loop.time() - self._looked_at >= _READY_SECONDS:
                self._found = await self._look()
                self._looked_at = loop.time()
            return self._found
