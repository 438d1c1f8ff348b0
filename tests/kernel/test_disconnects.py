"""What becomes of a request whose client has gone."""

import asyncio
from typing import Any

import httpx
from fastapi import Response

from app.kernel.auth import Public
from app.kernel.http import Router, json_response
from app.kernel.resources import ResourcesDep
from app.settings import Settings
from tests.fixtures.application import Lifespan
from tests.fixtures.waiting import eventually
from tests.kernel.conftest import create_app_with


async def metrics_of(running: Lifespan) -> str:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(running), base_url="http://localhost") as client:
        return (await client.get("/metrics")).text


async def call_until_gone(running: Lifespan, method: str, path: str, gone: asyncio.Event) -> None:
    """Sends a request and then closes the connection when `gone` is set."""
    is_sent = False

    async def receive() -> dict[str, Any]:
        nonlocal is_sent
        if is_sent:
            await gone.wait()
            return {"type": "http.disconnect"}
        is_sent = True
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None: ...

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [],
        "client": ("127.0.0.1", 1),
        "http_version": "1.1",
        "scheme": "http",
        "server": ("localhost", 80),
    }
    await running(scope, receive, send)


async def test_a_read_ends_with_its_client_and_a_write_goes_on(settings: Settings) -> None:
    done: list[str] = []
    entered = asyncio.Event()
    slow = Router(prefix="/slow")

    @slow.get("/sleep", dependencies=[Public])
    async def read(resources: ResourcesDep) -> Response:
        entered.set()
        async with resources.db.read("test.sleep") as conn:
            await conn.fetchval("SELECT 1 FROM pg_sleep(8) -- by a test")
        done.append("read")
        return json_response({})

    @slow.post("/sleep", dependencies=[Public])
    async def write() -> Response:
        entered.set()
        await asyncio.sleep(0.3)
        done.append("write")
        return json_response({})

    application = create_app_with(slow, settings)
    async with Lifespan(application).running() as running:
        database = application.state.resources.db
        for method in ("GET", "POST"):
            gone = asyncio.Event()
            entered.clear()
            call = asyncio.create_task(call_until_gone(running, method, "/slow/sleep", gone))
            await entered.wait()
            # Watched from then on, and the statement is under way.
            await asyncio.sleep(0.1)
            gone.set()
            async with asyncio.timeout(5):
                await call
        assert done == ["write"]

        async def nothing_is_left() -> bool:
            async with database.read("test.look") as conn:
                running_still = await conn.fetchval(
                    "SELECT count(*) FROM pg_stat_activity"
                    " WHERE state = 'active' AND query LIKE '%by a test%' AND pid <> pg_backend_pid()"
                )
            return bool(running_still == 0 and len(set(database._pool.connections)) == 1)

        await eventually(nothing_is_left, within=5)
        metrics = await metrics_of(running)
    labels = 'http_request_method="GET",http_response_status_code="499",http_route="/slow/sleep"'
    assert f"http_server_request_duration_seconds_count{{{labels}}} 1.0" in metrics
