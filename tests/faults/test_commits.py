"""Commits whose answer does not come: what is refused meanwhile, and what a second try makes of the first."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from app.kernel.ids import UserId, new_id
from app.settings import Settings
from app.worker import Worker, open_worker
from tests.faults.standby import GIVE_UP_WAITING, WAITING, standby_missing
from tests.fixtures.answers import problem_of
from tests.fixtures.clocks import ManualClock
from tests.fixtures.people import Person
from tests.fixtures.servers import Connection
from tests.fixtures.waiting import eventually
from tests.jobs.kinds import Steps, kinds_of

EVENT = {"kind": "page.viewed"}
EVENTS = "SELECT count(*) FROM users.events"
KEY = {"Idempotency-Key": "key"}
UNANSWERED = "A commit got no answer, and it is not known yet why."
REFUSED = "No standby confirms what is written."


@pytest.mark.settings(APP_DATABASE_STATEMENT_TIMEOUT="0.5", APP_DATABASE_POOL_SIZE="4")
async def test_writes_are_refused_while_commits_wait_and_come_true_later(
    person: Person, connection: Connection, database_url: str
) -> None:
    assert (await person.get("/v1/overview")).json()["recent_events"] == []
    async with standby_missing(connection, database_url):
        before = await connection.fetchval(WAITING)
        first = [asyncio.create_task(person.post("/v1/events", json=EVENT, headers=headers)) for headers in (KEY, {})]
        await eventually(lambda: _are_waiting(connection, before + 2))
        # Of its own, because those of the same group come while that is written.
        behind = asyncio.create_task(person.post("/v1/events", json=EVENT))
        for answer in await asyncio.gather(*first):
            problem_of(answer, 503, "database_unavailable")
        # No later request waits for as long again.
        assert (await behind).json()["detail"] in {UNANSWERED, REFUSED}

        async def are_refused() -> bool:
            answer = await person.post("/v1/events", json=EVENT, headers=KEY)
            return bool(answer.json()["detail"] == REFUSED)

        await eventually(are_refused)
        waiting = await connection.fetchval(WAITING)
        assert waiting == before + 2
        for _ in range(20):
            answers = await asyncio.gather(
                person.post("/v1/events", json=EVENT, headers=KEY), person.get("/v1/users/me")
            )
            assert [answer.status_code for answer in answers] == [503, 200]
        # No further commit has joined them.
        assert await connection.fetchval(WAITING) == waiting
        assert await connection.fetchval(EVENTS) == 0

    async def is_done() -> bool:
        return (await person.post("/v1/events", json=EVENT, headers=KEY)).status_code == 201

    await eventually(is_done)
    assert await connection.fetchval(EVENTS) == 2

    async def is_shown() -> bool:
        return len((await person.get("/v1/overview")).json()["recent_events"]) == 2

    await eventually(is_shown)


async def test_a_refresh_that_nobody_saw_the_end_of_may_be_repeated_once(
    clock: ManualClock, person: Person, client: httpx.AsyncClient, connection: Connection, database_url: str
) -> None:
    async def refresh() -> httpx.Response:
        return await client.post("/v1/auth/refresh", json={"refresh_token": person.tokens["refresh_token"]})

    async with standby_missing(connection, database_url):
        before = await connection.fetchval(WAITING)
        refreshing = asyncio.create_task(refresh())
        await eventually(lambda: _are_waiting(connection, before + 1))
        await connection.fetchval(GIVE_UP_WAITING)
        problem_of(await refreshing, 503, "database_unavailable")
    # Long after any parallel request could still be under way.
    clock.advance(60)
    again = await refresh()
    assert again.status_code == 200
    assert (await connection.fetchval("SELECT generation FROM identity.sessions")) == 1
    problem_of(await refresh(), 401, "invalid_refresh_token")


@pytest.fixture
def steps() -> Steps:
    return Steps()


@pytest.fixture
async def worker(settings: Settings, steps: Steps) -> AsyncIterator[Worker]:
    async with open_worker(settings, kinds=kinds_of(steps)) as worker:
        yield worker


async def test_a_job_whose_end_was_written_unseen_keeps_its_file(
    worker: Worker, steps: Steps, connection: Connection, database_url: str
) -> None:
    async with worker.db.statement("test.enqueue") as tx:
        job_id = await worker.queue.enqueue(tx, "test.file", {"number": 3}, user_id=UserId(new_id()))
    await eventually(lambda: steps.started == [job_id])
    async with standby_missing(connection, database_url):
        before = await connection.fetchval(WAITING)
        steps.gate.set()
        await eventually(lambda: _are_waiting(connection, before + 1))
        await connection.fetchval(GIVE_UP_WAITING)
    await eventually(lambda: not worker.runner.tasks)
    assert await connection.fetchval("SELECT state FROM jobs.jobs WHERE id = $1", job_id) == 2
    key = await connection.fetchval("SELECT storage_key FROM jobs.artifacts WHERE job_id = $1", job_id)
    assert await worker.store.read_all(key) == b"0\n1\n2\n"


async def _are_waiting(connection: Connection, count: int) -> bool:
    return bool(await connection.fetchval(WAITING) >= count)
