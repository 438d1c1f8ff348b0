"""No account fills the queues for the others: what it may have waiting is its own affair, and metrics stop nothing."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

import asyncpg
import pytest

from app.jobs.queries.relay import list_queue_depths
from app.jobs.records import QueueDepth
from app.jobs.service.backlogs import publish_backlogs
from app.kernel.ids import UserId, new_id
from tests.fixtures.application import Lifespan
from tests.fixtures.people import MakePerson, Person
from tests.fixtures.waiting import eventually
from tests.jobs.conftest import StartWorker
from tests.jobs.kinds import Producer

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

EXPORT: dict[str, Any] = {"kind": "export.events", "args": {"format": "csv"}}
INSERT = """
INSERT INTO jobs.jobs (id, user_id, kind, lane, args, is_due, dispatched_at)
SELECT gen_random_uuid(), $1, 'test.noop', $2, '{}', true, CASE WHEN $4 THEN now() END FROM generate_series(1, $3)
"""


def later(days: float) -> str:
    return (datetime.now(UTC) + timedelta(days=days)).isoformat()


async def submit(person: Person, **more: Any) -> tuple[int, str | None]:
    answer = await person.post("/v1/jobs", json=EXPORT | more)
    return answer.status_code, answer.json().get("code")


async def test_jobs_start_although_nothing_can_be_measured(
    start_worker: StartWorker, producer: Producer, connection: Connection
) -> None:
    # What is measured includes the breakers of endpoints; no other step of the relay needs this table.
    await connection.execute("ALTER TABLE jobs.webhook_endpoints RENAME TO renamed")
    try:
        await start_worker()
        async with producer.db.statement("test.enqueue") as tx:
            job_id = await producer.queue.enqueue(
                tx, "test.noop", {}, user_id=None, run_at=datetime.now(UTC) + timedelta(seconds=0.2)
            )

        async def is_done() -> bool:
            return bool(await connection.fetchval("SELECT state FROM jobs.jobs WHERE id = $1", job_id) == 2)

        await eventually(is_done)
    finally:
        await connection.execute("ALTER TABLE jobs.renamed RENAME TO webhook_endpoints")


async def test_no_backlog_is_counted_to_its_end(producer: Producer, connection: Connection) -> None:
    await connection.execute(INSERT, new_id(), "bulk", 5, False)
    await connection.execute(INSERT, new_id(), "of-another-release", 2, True)
    await connection.execute(INSERT, new_id(), "of-a-third", 2, False)
    async with producer.db.read("test.depths") as conn:
        depths = await list_queue_depths(conn, ["bulk", "pdf"], 3)
        (exact, *_) = await list_queue_depths(conn, ["bulk"], 6)
    assert [(depth.queue, depth.waiting) for depth in depths] == [
        ("bulk", 3),
        ("of-a-third", 2),
        ("of-another-release", 2),
        ("pdf", 0),
    ]
    assert exact.waiting == 5
    assert depths[0].oldest_seconds is not None
    assert depths[3].oldest_seconds is None


@pytest.mark.settings(APP_JOBS_USER_BACKLOG="3")
async def test_the_unfinished_jobs_of_a_user_are_limited(
    person: Person, make_person: MakePerson, connection: Connection
) -> None:
    answers = await asyncio.gather(*(submit(person, run_at=later(300)) for _ in range(8)))
    # Those of one group are counted together; groups that commit at a moment do not see each other.
    accepted = answers.count((202, None))
    assert 3 <= accepted < 8
    assert answers.count((429, "backlog_full")) == 8 - accepted
    rows = await connection.fetch("SELECT id FROM jobs.jobs WHERE user_id = $1 ORDER BY id", person.id)
    assert len(rows) == accepted
    assert await submit(person, unique_key="k") == (429, "backlog_full")
    # What has ended makes room, and is no way around the limit when it is run again.
    for row in rows[2:]:
        assert (await person.post(f"/v1/jobs/{row['id']}/cancel")).status_code == 200
    assert await submit(person, unique_key="k") == (202, None)
    assert await submit(person, unique_key="k") == (200, None)
    answer = await person.post(f"/v1/jobs/{rows[2]['id']}/retry")
    assert (answer.status_code, answer.json()["code"]) == (429, "backlog_full")
    assert await connection.fetchval("SELECT state FROM jobs.jobs WHERE id = $1", rows[2]["id"]) == 4
    assert await submit(await make_person()) == (202, None)


@pytest.mark.settings(APP_JOBS_BACKLOG_LIMIT="10")
async def test_in_a_full_queue_users_with_nothing_waiting_are_accepted(
    person: Person, make_person: MakePerson, running_app: Lifespan
) -> None:
    resources = running_app._application.state.resources
    backlogs = running_app._application.state.jobs.backlogs

    async def report(waiting: int) -> None:
        await publish_backlogs(resources.bus, [QueueDepth("bulk", False, waiting, 9e9, 3, 60, 0)])
        await eventually(lambda: "bulk" in backlogs._reports and backlogs._reports["bulk"].waiting == waiting)

    other, third = await make_person(), await make_person()
    await report(8)
    assert [await submit(person) for _ in range(3)] == [(202, None), (202, None), (429, "backlog_full")]
    assert await submit(other) == (202, None)
    await report(19)
    assert await submit(person) == (429, "backlog_full")
    assert await submit(third) == (202, None)
    await report(20)
    assert await submit(await make_person()) == (429, "backlog_full")


@pytest.mark.settings(APP_JOBS_BACKLOG_AGE="600")
async def test_what_waits_for_too_long_refuses_its_owner_alone(
    person: Person, make_person: MakePerson, connection: Connection
) -> None:
    assert await submit(person) == (202, None)
    await connection.execute("UPDATE jobs.jobs SET run_at = now() - interval '11 minutes'")
    assert await submit(person) == (429, "backlog_full")
    assert await submit(await make_person()) == (202, None)
    assert await connection.fetchval("SELECT count(*) FROM jobs.jobs WHERE user_id = $1", person.id) == 1


async def test_no_job_is_put_in_for_later_than_a_year(person: Person, connection: Connection) -> None:
    answer = await person.post("/v1/jobs", json=EXPORT | {"run_at": later(367)})
    assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")
    assert [(error["pointer"], error["code"]) for error in answer.json()["errors"]] == [("#/run_at", "too_large")]
    assert await submit(person, run_at=later(365)) == (202, None)
    assert await connection.fetchval("SELECT count(*) FROM jobs.jobs WHERE user_id = $1", UserId(person.id)) == 1
