"""Redis stopped, frozen, slow, flushed, full and back again under a running API: only the metrics show it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import redis.asyncio as redis
import structlog

from app.composition import close_resources, make_resources, warn_of_eviction
from app.main import Onehop, create_app
from app.settings import load_settings
from tests.faults.proxy import Proxy
from tests.fixtures.people import PASSWORD, Person, register
from tests.fixtures.servers import Connection
from tests.fixtures.waiting import eventually, in_time
from tests.kernel.conftest import client_of

# Those of production; the suite's own ones are wider.
OPERATION_TIMEOUT = "0.1"

Fault = Callable[[Proxy, redis.Redis], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def stopped(proxy: Proxy, _: redis.Redis) -> AsyncIterator[None]:
    async with proxy.refusing():
        yield


@asynccontextmanager
async def frozen(proxy: Proxy, _: redis.Redis) -> AsyncIterator[None]:
    async with proxy.frozen():
        yield


@asynccontextmanager
async def slow(proxy: Proxy, _: redis.Redis) -> AsyncIterator[None]:
    proxy.slow_down(latency=0.3, jitter=0.2)
    yield
    await proxy.restore()


@asynccontextmanager
async def full(_: Proxy, server: redis.Redis) -> AsyncIterator[None]:
    await server.config_set("maxmemory-policy", "noeviction")
    await server.config_set("maxmemory", "1")
    try:
        yield
    finally:
        await server.config_set("maxmemory", "0")


@asynccontextmanager
async def flushed(_: Proxy, server: redis.Redis) -> AsyncIterator[None]:
    await server.flushall()
    yield
    await server.flushall()


@asynccontextmanager
async def cut(proxy: Proxy, _: redis.Redis) -> AsyncIterator[None]:
    """All connections are reset again and again, as by restarts."""
    task = asyncio.create_task(_cut_for_ever(proxy))
    yield
    task.cancel()


async def _cut_for_ever(proxy: Proxy) -> None:
    while True:
        proxy.reset()
        await asyncio.sleep(0.05)


@dataclass
class Calls:
    """Calls everything that meets Redis, and says what was not as if it were there."""

    client: httpx.AsyncClient
    person: Person
    wrong: list[str] = field(default_factory=list)
    events: int = 0
    jobs: int = 0

    async def expect(self, status: int, call: Awaitable[httpx.Response]) -> Any:
        # The fault lasts until the round is done, so something must end each wait for Redis.
        async with in_time():
            answer = await call
        if answer.status_code != status:
            self.wrong.append(f"{answer.request.method} {answer.request.url.path}: {answer.status_code} {answer.text}")
        return answer.json() if answer.content else None

    async def make(self, name: str) -> None:
        """One round, after which the caller must read what they wrote."""
        person = self.person
        await self.expect(200, person.patch("/v1/users/me", json={"display_name": name}))
        await self.expect(201, person.post("/v1/events", json={"kind": "fault.met"}))
        self.events += 1
        await self.expect(202, person.post("/v1/jobs", json={"kind": "export.account", "args": {}}))
        self.jobs += 1
        for _ in range(3):
            overview = await self.expect(200, person.get("/v1/overview"))
            if overview["user"]["display_name"] != name or overview["jobs"]["queued"] != self.jobs:
                self.wrong.append(f"an old overview: {overview}")
        await self.expect(200, person.get("/v1/users/me/events"))
        login = {"email": person.email, "password": PASSWORD}
        signed_in = await self.expect(200, self.client.post("/v1/auth/login", json=login))
        tokens = signed_in["tokens"]
        body = {"refresh_token": tokens["refresh_token"]}
        tokens = await self.expect(200, self.client.post("/v1/auth/refresh", json=body))
        headers = {"Authorization": f"Bearer {tokens['access_token']}"}
        await self.expect(200, self.client.get("/v1/users/me", headers=headers))
        await self.expect(204, self.client.post("/v1/auth/logout", headers=headers))
        await self.expect(401, self.client.get("/v1/users/me", headers=headers))
        await self.expect(200, self.client.get("/readyz"))


@pytest.mark.slow
async def test_nobody_notices(
    environment: dict[str, str], redis_url: str, connection: Connection, frozen_garbage: None
) -> None:
    """B1 to B4: each fault in turn, under one running program, with the time-outs of production."""
    variables = {
        "APP_REDIS_OPERATION_TIMEOUT": OPERATION_TIMEOUT,
        "APP_REDIS_CONNECT_TIMEOUT": "0.2",
        "APP_IDENTITY_HASH_MEMORY_KIB": "1024",
    }
    async with Proxy.before(redis_url) as proxy, redis.Redis.from_url(redis_url) as server:
        app = create_app(load_settings(environment | variables | {"REDIS_URL": proxy.url}))
        async with client_of(app) as client:
            calls = Calls(client, await register(client))
            await calls.make("before")
            for fault in (stopped, frozen, slow, full, flushed, cut):
                async with fault(proxy, server):
                    # The first round meets the fault itself, the second one an open breaker.
                    for number in range(2):
                        await calls.make(f"{fault.__name__} {number}")
                await calls.make(f"after {fault.__name__}")
                await proxy.restore()
            assert calls.wrong == []
            await recovered(app, client)
    assert await connection.fetchval("SELECT count(*) FROM users.events WHERE kind = 'fault.met'") == calls.events
    assert await connection.fetchval("SELECT count(*) FROM jobs.jobs WHERE kind = 'export.account'") == calls.jobs


async def recovered(app: Onehop, client: httpx.AsyncClient) -> None:
    """Redis is in use again, without a restart."""

    async def is_well() -> bool:
        checks = (await client.get("/readyz")).json()["checks"]
        return bool(checks["redis"] == "ok" and app.state.resources.bus.is_connected)

    await eventually(is_well)


@pytest.mark.settings(APP_CACHE_TTL="60")
async def test_a_flush_costs_each_answer_once(client: httpx.AsyncClient, redis_url: str, person: Person) -> None:
    """B3: after a flush, many callers of one answer make one of them ask the database."""
    await person.get("/v1/overview")
    async with redis.Redis.from_url(redis_url) as server:
        await server.flushall()
    before = await cache_misses(client)
    answers = await asyncio.gather(*(person.get("/v1/overview") for _ in range(50)))
    assert {answer.status_code for answer in answers} == {200}
    assert await cache_misses(client) - before <= 1


async def cache_misses(client: httpx.AsyncClient) -> float:
    text = (await client.get("/metrics")).text
    return sum(
        float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if line.startswith("onehop_cache_requests_total") and 'result="miss"' in line
    )


async def test_a_policy_that_does_not_suit_is_told(environment: dict[str, str], redis_url: str) -> None:
    """B4: what keeps queued jobs must not throw away, and what only caches must. Where the question is forbidden,
    nothing is logged.
    """
    async with (
        Proxy.before(redis_url) as keeping,
        Proxy.before(redis_url) as caching,
        redis.Redis.from_url(redis_url) as server,
    ):

        async def told(url: str) -> set[tuple[str, str]]:
            variables = {"REDIS_URL": url, "APP_REDIS_CACHE_URL": caching.url, "APP_REDIS_LIMITS_URL": url}
            resources = make_resources(load_settings(environment | variables), application_name="test")
            try:
                with structlog.testing.capture_logs() as logs:
                    await warn_of_eviction(resources)
            finally:
                await close_resources(resources)
            assert {line["log_level"] for line in logs} <= {"warning"}
            return {(line["server"], line["policy"]) for line in logs}

        try:
            assert await told(keeping.url) == set()
            await server.config_set("maxmemory", "1gb")
            assert await told(keeping.url) == {(f"127.0.0.1:{caching.port}", "noeviction")}
            await server.config_set("maxmemory-policy", "allkeys-lfu")
            assert await told(keeping.url) == {(f"127.0.0.1:{keeping.port}", "allkeys-lfu")}
            await server.execute_command("ACL", "SETUSER", "unknowing", "on", "nopass", "~*", "&*", "+@all", "-info")
            assert await told(f"redis://unknowing:x@127.0.0.1:{keeping.port}/0") == set()
            async with keeping.refusing():
                assert await told(keeping.url) == set()
        finally:
            await server.config_set("maxmemory-policy", "noeviction")
            await server.config_set("maxmemory", "0")
            await server.execute_command("ACL", "DELUSER", "unknowing")
