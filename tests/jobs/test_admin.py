"""`/v1/admin/queues` and `/v1/admin/jobs`."""

from typing import TypeAlias

import asyncpg
import httpx
import pytest

from tests.fixtures.people import MakePerson, Person

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

EXPORT = {"kind": "export.events", "args": {"format": "csv"}}


@pytest.fixture
async def admin(client: httpx.AsyncClient, make_person: MakePerson, connection: Connection) -> Person:
    """A user who was made an administrator and has logged in again since."""
    person = await make_person()
    await connection.execute("UPDATE identity.accounts SET role = 'admin' WHERE user_id = $1", person.id)
    answer = await client.post("/v1/auth/login", json={"email": person.email, "password": person.password})
    assert answer.status_code == 200, answer.text
    return Person(client, person.id, person.email, person.password, answer.json()["tokens"])


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "queues"),
        ("POST", "queues/bulk/pause"),
        ("POST", "queues/bulk/resume"),
        ("GET", "jobs"),
        ("POST", "jobs/01a202c6-fe5c-7173-acaa-39c71dc7ae71/retry"),
    ],
)
async def test_only_administrators_may(person: Person, connection: Connection, method: str, path: str) -> None:
    assert (await person.request(method, f"/v1/admin/{path}")).status_code == 403
    assert (await person.client.request(method, f"/v1/admin/{path}")).status_code == 401
    assert await connection.fetchval("SELECT count(*) FROM jobs.lanes") == 0


async def test_queues_are_listed_paused_and_resumed(admin: Person, person: Person) -> None:
    await person.post("/v1/jobs", json=EXPORT)
    queues = {queue["queue"]: queue for queue in (await admin.get("/v1/admin/queues")).json()["items"]}
    assert list(queues) == ["bulk", "critical", "default", "pdf", "webhooks"]
    assert (queues["bulk"]["waiting"], queues["bulk"]["running"], queues["bulk"]["paused"]) == (1, 0, False)
    assert queues["bulk"]["oldest_seconds"] >= 0
    assert queues["pdf"]["oldest_seconds"] is None
    for _ in range(2):
        assert (await admin.post("/v1/admin/queues/bulk/pause")).status_code == 204
    paused = [queue["queue"] for queue in (await admin.get("/v1/admin/queues")).json()["items"] if queue["paused"]]
    assert paused == ["bulk"]
    assert (await admin.post("/v1/admin/queues/bulk/resume")).status_code == 204
    assert not any(queue["paused"] for queue in (await admin.get("/v1/admin/queues")).json()["items"])
    answer = await admin.post("/v1/admin/queues/fast/pause")
    assert (answer.status_code, answer.json()["code"]) == (404, "queue_not_found")


async def test_everybodys_jobs_are_listed_and_retried(
    admin: Person, make_person: MakePerson, connection: Connection
) -> None:
    people = [await make_person() for _ in range(2)]
    await connection.execute("DELETE FROM jobs.jobs")
    ids = [(await person.post("/v1/jobs", json=EXPORT)).json()["id"] for person in people]
    page = (await admin.get("/v1/admin/jobs", params={"limit": 1})).json()
    assert [job["id"] for job in page["items"]] == [ids[1]]
    page = (await admin.get("/v1/admin/jobs", params={"limit": 1, "cursor": page["next_cursor"]})).json()
    assert [(job["id"], job["user_id"]) for job in page["items"]] == [(ids[0], str(people[0].id))]
    assert page["next_cursor"] is None
    await connection.execute(
        """
        UPDATE jobs.jobs SET state = 3, attempt = 5, finished_at = now(), error = '{"code": "x", "message": "y"}'
        WHERE id = $1::text::uuid
        """,
        ids[0],
    )
    failed = (await admin.get("/v1/admin/jobs", params={"state": "failed"})).json()["items"]
    assert [(job["id"], job["error"]) for job in failed] == [(ids[0], {"code": "x", "message": "y"})]
    answer = await admin.post(f"/v1/admin/jobs/{ids[0]}/retry")
    assert (answer.status_code, answer.json()["state"], answer.json()["attempt"]) == (202, "queued", 0)
    assert (await admin.post(f"/v1/admin/jobs/{ids[0]}/retry")).status_code == 409
