"""Workers inside the test's process, on the test's own servers."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import asyncpg
import pytest

from app.settings import Settings
from app.worker import Worker, open_worker
from tests.fixtures.people import MakePerson, Person
from tests.jobs.kinds import Steps, kinds_of


@pytest.fixture
async def person(make_person: MakePerson, connection: "asyncpg.Connection[asyncpg.Record]") -> Person:
    """Somebody without any job; registering leaves some behind."""
    person = await make_person()
    await connection.execute("DELETE FROM jobs.jobs")
    return person


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
