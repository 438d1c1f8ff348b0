"""The jobs and deliveries of an account end with it; what tells of its end still goes out."""

import json
from typing import TypeAlias
from uuid import UUID

import asyncpg
import httpx
import pytest

from app.jobs.api import JOB_KINDS
from app.kernel.ids import UserId
from app.settings import Settings
from app.worker import open_worker
from tests.fixtures.people import MakePerson, Person
from tests.fixtures.waiting import eventually
from tests.jobs.conftest import StartWorker
from tests.jobs.kinds import Producer, Steps
from tests.jobs.receiver import LOCAL, Receiver, register

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


@pytest.fixture
async def admin(client: httpx.AsyncClient, make_person: MakePerson, connection: Connection) -> Person:
    """An administrator who has logged in since being made one."""
    person = await make_person()
    await connection.execute("UPDATE identity.accounts SET role = 'admin' WHERE user_id = $1", person.id)
    answer = await client.post("/v1/auth/login", json={"email": person.email, "password": person.password})
    assert answer.status_code == 200, answer.text
    return Person(client, person.id, person.email, person.password, answer.json()["tokens"])


async def submit(person: Person) -> UUID:
    answer = await person.post("/v1/jobs", json={"kind": "export.events", "args": {"format": "csv"}})
    assert answer.status_code == 202
    return UUID(answer.json()["id"])


async def has_state(connection: Connection, job_id: UUID, state: int) -> bool:
    return bool(await connection.fetchval("SELECT state = $2 FROM jobs.jobs WHERE id = $1", job_id, state))


@LOCAL
async def test_nothing_of_a_banned_account_runs_until_the_ban_is_lifted(
    person: Person, admin: Person, receiver: Receiver, settings: Settings, connection: Connection
) -> None:
    endpoint = await register(person, receiver.url, "job.succeeded")
    assert (await person.post(f"/v1/webhooks/endpoints/{endpoint['id']}/test")).status_code == 202
    export, later, of_another = await submit(person), await submit(person), await submit(admin)
    await connection.execute(
        """
        UPDATE jobs.jobs SET run_at = now() + interval '1 hour', is_due = false, dispatched_at = NULL
        WHERE id = $1
        """,
        later,
    )
    assert (await admin.post(f"/v1/admin/users/{person.id}/ban")).status_code == 204
    delivery = await connection.fetchrow("SELECT state, last_error FROM jobs.webhook_deliveries")
    assert delivery is not None
    assert tuple(delivery) == ("failed", "account_banned")
    async with open_worker(settings, JOB_KINDS):
        await eventually(lambda: has_state(connection, of_another, 2))
        await eventually(lambda: has_state(connection, export, 4))
        error = json.loads(await connection.fetchval("SELECT error FROM jobs.jobs WHERE id = $1", export))
        assert error == {"code": "account_banned", "message": "The account was banned or closed."}
        assert await has_state(connection, later, 0)
        assert (await admin.post(f"/v1/admin/users/{person.id}/unban")).status_code == 204
        await connection.execute("UPDATE jobs.jobs SET run_at = now() WHERE id = $1", later)
        await eventually(lambda: has_state(connection, later, 2))
        # The end of the job that the ban has left; the test event is not sent by itself.
        await eventually(lambda: len(receiver.requests) == 1)
    assert json.loads(receiver.requests[0][1])["data"]["job_id"] == str(later)


@LOCAL
async def test_of_a_closed_account_only_its_end_is_told(
    person: Person, receiver: Receiver, settings: Settings, connection: Connection
) -> None:
    await register(person, receiver.url, "user.deleted", "job.succeeded")
    export = await submit(person)
    answer = await person.request("DELETE", "/v1/users/me", json={"current_password": person.password})
    assert answer.status_code == 202
    async with open_worker(settings, JOB_KINDS):
        await eventually(lambda: has_state(connection, export, 4))
        await eventually(lambda: len(receiver.requests) == 1)
    assert json.loads(receiver.requests[0][1])["type"] == "user.deleted"
    assert await connection.fetchval("SELECT error->>'code' FROM jobs.jobs WHERE id = $1", export) == "account_deleted"


async def test_a_running_job_of_a_banned_account_is_stopped(
    person: Person,
    admin: Person,
    start_worker: StartWorker,
    producer: Producer,
    steps: Steps,
    connection: Connection,
) -> None:
    await start_worker()
    async with producer.db.statement("test.enqueue") as tx:
        job_id = await producer.queue.enqueue(tx, "test.wait", {}, user_id=UserId(person.id))
    await eventually(lambda: steps.started == [job_id])
    assert (await admin.post(f"/v1/admin/users/{person.id}/ban")).status_code == 204
    await eventually(lambda: has_state(connection, job_id, 4))
    assert steps.ended == []
