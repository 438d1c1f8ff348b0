"""Workers inside the test's process, on the test's own servers."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import asyncpg
import pytest
from aiohttp import web

from app.jobs.api import JOB_KINDS, insert_jobs
from app.kernel.database import Database
from app.kernel.queue import Queue
from app.kernel.redis.gateway import RedisGateway
from app.settings import Settings
from app.worker import Worker, open_worker
from tests.fixtures.application import Lifespan
from tests.fixtures.people import MakePerson, Person, make_admin
from tests.jobs.kinds import Producer, Steps, kinds_of
from tests.jobs.receiver import Receiver


@pytest.fixture
async def person(make_person: MakePerson, connection: "asyncpg.Connection[asyncpg.Record]") -> Person:
    """A user without any job; registering leaves some behind."""
    person = await make_person()
    await connection.execute("DELETE FROM jobs.jobs")
    return person


@pytest.fixture
async def proven(person: Person, connection: "asyncpg.Connection[asyncpg.Record]") -> Person:
    """A user without any job whose address is verified, and whose invoices are therefore sent to others."""
    await connection.execute("UPDATE identity.accounts SET email_verified_at = now() WHERE user_id = $1", person.id)
    return person


@pytest.fixture
async def admin(make_person: MakePerson, connection: "asyncpg.Connection[asyncpg.Record]") -> Person:
    return await make_admin(await make_person(), connection)


@pytest.fixture
async def producer(settings: Settings) -> AsyncIterator[Producer]:
    db = Database(settings.database)
    redis = RedisGateway(settings.redis)
    queue = Queue(insert_jobs, redis, window=3)
    queue.bind(db)
    await db.open()
    yield Producer(db, redis, queue)
    await db.close()
    await queue.close()


@pytest.fixture
def steps() -> Steps:
    return Steps()


StartWorker = Callable[..., Awaitable[Worker]]


@pytest.fixture
async def start_worker(settings: Settings, steps: Steps) -> AsyncIterator[StartWorker]:
    """Starts workers on this test's database; each keyword is a setting of the jobs section."""
    async with AsyncExitStack() as stack:

        async def start(**changes: Any) -> Worker:
            jobs = settings.jobs.model_copy(update={"drain": 0.1} | changes)
            changed = settings.model_copy(update={"jobs": jobs})
            return await stack.enter_async_context(open_worker(changed, kinds=kinds_of(steps)))

        yield start


@pytest.fixture
async def worker(start_worker: StartWorker) -> Worker:
    return await start_worker()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    made = Receiver()
    application = web.Application()
    application.router.add_post("/hook", made.handle)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    yield made
    await runner.cleanup()


@pytest.fixture
def test_kinds(running_app: Lifespan, steps: Steps) -> None:
    """Lets callers submit the kinds of `tests.jobs.kinds`."""
    running_app._application.state.jobs.kinds.update(kinds_of(steps))


@pytest.fixture
async def api_worker(settings: Settings, steps: Steps) -> AsyncIterator[Worker]:
    """A worker that knows the real kinds and those of the tests."""
    async with open_worker(settings, {**JOB_KINDS, **kinds_of(steps)}) as worker:
        yield worker
        worker.runner.draining = True
