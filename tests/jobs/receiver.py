"""A receiver of webhooks, and what its owner does with the API."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import pytest
from aiohttp import web

from tests.fixtures.people import Person
from tests.fixtures.waiting import eventually

LOCAL = pytest.mark.settings(APP_JOBS_WEBHOOK_ALLOW="127.0.0.1/32", APP_JOBS_WEBHOOK_HTTP="true")


@dataclass
class Receiver:
    """The server of a receiver. `answers` are given in turn; the last one for ever."""

    url: str = ""
    answers: list[tuple[int, dict[str, str]]] = field(default_factory=lambda: [(200, {})])
    requests: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    delay: float = 0.0

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.requests.append((dict(request.headers), body))
        await asyncio.sleep(self.delay)
        status, headers = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return web.Response(status=status, headers=headers, text="seen")


async def register(person: Person, url: str, *event_types: str) -> dict[str, Any]:
    answer = await person.post("/v1/webhooks/endpoints", json={"url": url, "event_types": event_types or ["*"]})
    assert answer.status_code == 201, answer.text
    endpoint: dict[str, Any] = answer.json()
    return endpoint


async def settled(person: Person, count: int = 1) -> list[dict[str, Any]]:
    """The deliveries, once all of them are."""

    async def read() -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = (await person.get("/v1/webhooks/deliveries")).json()["items"]
        return items

    async def are_settled() -> bool:
        items = await read()
        return len(items) == count and all(item["state"] != "pending" for item in items)

    await eventually(are_settled)
    return await read()


async def try_again_now(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    """Has a delivery that failed tried again now. Its job is put back a moment after the delivery has been noted."""

    async def is_due() -> bool:
        done = await connection.execute(
            "UPDATE jobs.jobs SET run_at = now() WHERE kind = 'webhook.deliver' AND state = 0 AND attempt > 0"
        )
        return done == "UPDATE 1"

    await eventually(is_due)
