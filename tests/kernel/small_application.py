"""What the tests of the server's life serve: an application that starts at once.

`python -m tests.kernel.small_application PORT WORKERS GRACE [takeover]`
"""

import asyncio
import os
import sys
import time
from typing import Any

from app.kernel.observability.telemetry import configure_logging
from app.kernel.server import serve
from app.kernel.settings import ConnectionSettings, LogSettings

# Longer than any test waits: what ends sooner was ended.
_AN_HOUR = 3600
_hanging = 0


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await live(receive, send)
        return
    global _hanging  # noqa: PLW0603 - of the process, which tells it
    if scope["path"] == "/die":
        os._exit(9)
    if scope["path"] == "/block":
        time.sleep(_AN_HOUR)  # noqa: ASYNC251 - that is what it is for
    if scope["path"] in {"/wait", "/hang"}:
        _hanging += 1
    if scope["path"] == "/wait":
        await asyncio.sleep(_AN_HOUR)
    while scope["path"] == "/hang":
        try:
            await asyncio.sleep(_AN_HOUR)
        except asyncio.CancelledError:
            continue
    text = f"{os.getpid()} {scope['state']['draining'].is_set()}".encode()
    if scope["path"] == "/hanging":
        text = b"%d" % _hanging
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(text))]})
    await send({"type": "http.response.body", "body": text})


async def live(receive: Any, send: Any) -> None:
    configure_logging(LogSettings(), production=True)
    await receive()
    await send({"type": "lifespan.startup.failed" if os.environ.get("FAIL") else "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})


if __name__ == "__main__":
    port, workers, grace, *rest = sys.argv[1:]
    serve(
        "tests.kernel.small_application:app",
        ConnectionSettings(drain_delay=float(os.environ.get("DRAIN_DELAY", "0.3"))),
        host="127.0.0.1",
        port=int(port),
        workers=int(workers),
        grace_seconds=int(grace),
        takes_over="takeover" in rest,
        max_stall=float(os.environ.get("MAX_STALL", "0")),
    )
