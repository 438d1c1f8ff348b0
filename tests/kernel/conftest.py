"""The kernel's parts on their own, and the application with routes that only a test has."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

import httpx
import pytest
from fastapi import FastAPI

from app.kernel.cache import Cache
from app.kernel.database import Database
from app.kernel.http import Router
from app.kernel.redis.bus import Bus
from app.kernel.redis.gateway import RedisGateway
from app.kernel.settings import CacheSettings
from app.main import create_app
from app.settings import Settings, load_settings
from tests.fixtures.application import Lifespan
from tests.fixtures.lives import first_life
from tests.fixtures.servers import Connection
from tests.fixtures.waiting import eventually, scaled
from tests.kernel.accounts import TABLES
from tests.kernel.caches import Process, Source, StartProcess

OpenDatabase = Callable[..., Awaitable[Database]]
OpenRedis = Callable[..., Awaitable[RedisGateway]]
Planted = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


async def pool_becomes_whole(database: Database) -> None:
    """Every connection of the pool comes back to it."""
    pool = database._pool
    assert pool is not None
    await eventually(lambda: pool.connections[0] == pool.connections[1] > 0)


@pytest.fixture
async def open_database(database_url: str) -> AsyncIterator[OpenDatabase]:
    """Makes a coroutine that opens a gateway to this test's database; keywords are fields of its settings.

    Time-outs are those of `environment`: a test about those of production gives them.
    """
    async with AsyncExitStack() as stack:

        async def open_database(**changes: object) -> Database:
            patient = ("acquire_timeout", "connect_timeout", "statement_timeout", "lock_timeout")
            fields = dict.fromkeys(patient, 10) | changes
            variables = {f"APP_DATABASE_{name.upper()}": str(value) for name, value in fields.items()}
            settings = load_settings({"DATABASE_URL": database_url, "APP_SECRET_KEY": "k" * 32} | variables)
            database = Database(settings.database)
            await database.open()
            stack.push_async_callback(database.close)
            return database

        yield open_database


@pytest.fixture
async def accounts(connection: Connection) -> Connection:
    """A connection beside the gateway's, to a database with the accounts a and b of 10 each."""
    await connection.execute(TABLES)
    return connection


@pytest.fixture
async def database(open_database: OpenDatabase, accounts: Connection) -> Database:
    """A gateway to that database."""
    return await open_database(pool_size=4)


@pytest.fixture
async def open_redis(redis_url: str) -> AsyncIterator[OpenRedis]:
    """Makes a coroutine that opens a gateway to this worker's Valkey; keywords are fields of its settings, as above."""
    async with AsyncExitStack() as stack:

        async def open_redis(**changes: object) -> RedisGateway:
            fields = {"operation_timeout": 10, "connect_timeout": 10} | changes
            variables = {f"APP_REDIS_{name.upper()}": str(value) for name, value in fields.items()}
            settings = load_settings({"REDIS_URL": redis_url, "APP_SECRET_KEY": "k" * 32} | variables)
            gateway = RedisGateway(settings.redis)
            stack.push_async_callback(gateway.close)
            return gateway

        yield open_redis


@pytest.fixture
def planted(settings: Settings, frozen_garbage: None) -> Planted:
    """Makes a context with a client of the application that also has the routes of `router`."""

    @asynccontextmanager
    async def plant(router: Router, settings: Settings = settings) -> AsyncIterator[httpx.AsyncClient]:
        async with client_of(create_app_with(router, settings)) as client:
            yield client

    return plant


def create_app_with(router: Router, settings: Settings) -> FastAPI:
    app = create_app(settings)
    # As the routes of the modules are: in front of what is not a route of ours.
    app.router.routes[:0] = router.routes
    return app


@asynccontextmanager
async def client_of(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with Lifespan(app).running() as running:
        transport = httpx.ASGITransport(running, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            yield client


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
async def start_process(open_redis: OpenRedis, source: Source) -> AsyncIterator[StartProcess]:
    processes: list[Process] = []

    async def start(**settings: object) -> Process:
        gateway = await open_redis(breaker_cooldown=0.1)
        bus = Bus(gateway)
        process = Process(Cache(CacheSettings.model_validate(settings), gateway, bus, first_life()), bus, source)
        await bus.start(wait=scaled(10))
        processes.append(process)
        return process

    yield start
    for process in processes:
        await process.cache.close()
        await process.bus.close()
