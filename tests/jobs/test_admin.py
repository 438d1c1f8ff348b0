"""`/v1/admin/queues` and `/v1/admin/jobs`."""

from typing import Any, TypeAlias
from uuid import uuid4

import asyncpg
import pytest

from tests.fixtures.application import Lifespan
from tests.fixtures.people import MakePerson, Person
from tests.jobs.rows import put_in

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

EXPORT = {"kind": "export.events", "args": {"format": "csv"}}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "queues"),
        ("POST", "queues/bulk/pause"),
        ("POST", "queues/bulk/resume"),
        ("GET", "jobs"),
        ("GET", "schedules"),
        ("GET", "workers"),
        ("GET", "jobs/01a202c6-fe5c-7173-acaa-39c71dc7ae71"),
        ("POST", "jobs/01a202c6-fe5c-7173-acaa-39c71dc7ae71/cancel"),
        ("POST", "jobs/01a202c6-fe5c-7173-acaa-39c71dc7ae71/retry"),
    ],
)
async def test_only_administrators_may(person: Person, connection: Connection, method: str, path: str) -> None:
    assert (await person.request(method, f"/v1/admin/{path}")).status_code == 403
    assert (await person.client.request(method, f"/v1/admin/{path}")).status_code == 401
    assert await connection.fetchval("SELECT count(*) FROM jobs.lanes") == 0


async def test_queues_are_listed_paused_and_resumed(admin: Person, person: Person, connection: Connection) -> None:
    await person.post("/v1/jobs", json=EXPORT)
    queues = {queue["queue"]: queue for queue in (await admin.get("/v1/admin/queues")).json()["items"]}
    assert list(queues) == ["bulk", "critical", "default", "pdf", "webhooks"]
    assert (queues["bulk"]["waiting"], queues["bulk"]["running"], queues["bulk"]["paused"]) == (1, 0, False)
    assert queues["bulk"]["oldest_seconds"] >= 0
    assert queues["pdf"]["oldest_seconds"] is None
    await put_in(connection, 1, state=3, lane="pdf")
    await put_in(connection, 2, state=2, lane="pdf")
    await connection.execute("UPDATE jobs.jobs SET finished_at = now() WHERE state >= 2")
    queues = {queue["queue"]: queue for queue in (await admin.get("/v1/admin/queues")).json()["items"]}
    assert (queues["pdf"]["finished_last_minute"], queues["pdf"]["failed_last_minute"]) == (2, 1)
    assert (queues["bulk"]["finished_last_minute"], queues["bulk"]["failed_last_minute"]) == (0, 0)
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


@pytest.fixture
async def many(admin: Person, person: Person, connection: Connection) -> list[str]:
    """Ids of jobs that each differ from the others in what the list is filtered by."""
    failed = {"code": "timeout", "message": "x"}
    rows: list[dict[str, Any]] = [
        {"state": 2},
        {"state": 3, "error": failed, "kind": "test.rare"},
        {"state": 3, "error": {"code": "other", "message": "x"}, "lane": "bulk"},
        {"state": 0, "attempt": 1, "error": failed},
        {"state": 0, "run_at": "2100-01-01T00:00:00Z", "user_id": str(person.id)},
        {"state": 3, "error": failed, "user_id": str(person.id), "lane": "bulk"},
        {"state": 4, "kind": "test.rare"},
        {"state": 1, "run_token": str(uuid4())},
        {"state": 0},
    ]
    await connection.execute("DELETE FROM jobs.jobs")
    return [await put_in(connection, number, **row) for number, row in enumerate(rows)]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("", [8, 7, 6, 5, 4, 3, 2, 1, 0]),
        ("state=failed", [5, 2, 1]),
        ("state=cancelled", [6]),
        ("state=running", [7]),
        ("state=queued", [8]),
        ("state=scheduled", [4]),
        ("state=retrying", [3]),
        ("state=succeeded", [0]),
        ("kind=test.rare", [6, 1]),
        ("kind=test.none", []),
        ("queue=bulk", [5, 2]),
        ("queue=bulk&state=failed&kind=test.noop", [5, 2]),
        ("user_id={person}", [5, 4]),
        ("user_id={person}&state=failed", [5]),
        ("user_id={person}&queue=bulk", [5]),
        ("user_id={person}&error=other", []),
        ("error=timeout", [5, 3, 1]),
        ("error=timeout&state=failed", [5, 1]),
        ("error=timeout&queue=bulk", [5]),
        ("since=2024-06-10T00:00:00Z", [8, 7, 6, 5, 4, 3, 2, 1, 0]),
        ("since=2024-06-11T00:00:00Z", []),
        ("until=2024-06-11T00:00:00Z&state=failed", [5, 2, 1]),
        ("until=2024-06-10T00:00:00Z&kind=test.rare", []),
        ("since=0001-01-02T00:00:00Z&until=9999-12-31T00:00:00Z&error=other", [2]),
    ],
)
async def test_jobs_are_found_by_each_filter(
    admin: Person, person: Person, many: list[str], query: str, found: list[int]
) -> None:
    path = f"/v1/admin/jobs?{query.format(person=person.id)}"
    answer = await admin.get(path)
    assert answer.status_code == 200, answer.text
    page = answer.json()
    assert [many.index(job["id"]) for job in page["items"]] == found
    # Page by page it is the same, however short the pages are.
    walked: list[int] = []
    cursor: str | None = ""
    while cursor is not None:
        page = (await admin.get(f"{path}&limit=1" + (f"&cursor={cursor}" if cursor else ""))).json()
        walked += [many.index(job["id"]) for job in page["items"]]
        cursor = page["next_cursor"]
    assert walked == found


async def test_a_list_is_two_statements_and_its_entry_in_the_trail(
    admin: Person, running_app: Lifespan, many: list[str]
) -> None:
    db = running_app._application.state.resources.db
    answers = {
        "/v1/admin/jobs?state=retrying&until=2100-01-01T00:00:00Z": ["jobs.list_all", "jobs.list_all"],
        f"/v1/admin/jobs/{many[0]}": ["jobs.detail"],
    }
    for path, labels in answers.items():
        with db.recorder() as statements:
            assert (await admin.get(path)).status_code == 200
        # The program reads for itself in between.
        of_request = [statement.label for statement in statements if statement.label != "identity.revocations"]
        assert of_request == [*labels, "identity.admin_read"]


async def test_a_job_is_shown_with_its_arguments_runs_and_files(
    admin: Person, person: Person, connection: Connection
) -> None:
    args = {"to": "ada@example.com", "subject": "Hi", "text": "https://example.com/?token=x", "later": "release"}
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    job_id = await put_in(
        connection,
        1,
        kind="email.send",
        args=args,
        state=2,
        user_id=str(person.id),
        attempt=2,
        worker_id="host:2",
        started_at="2026-01-01T00:00:02Z",
        result={"sent": True},
        trace_parent=trace,
    )
    await connection.execute(
        """
        INSERT INTO jobs.attempts (job_id, n, started_at, ended_at, outcome, error, worker_id)
        VALUES ($1::text::uuid, 1, '2026-01-01T00:00:00Z', '2026-01-01T00:00:01Z', 'retried',
                '{"code": "timeout", "message": "x"}', 'host:1')
        """,
        job_id,
    )
    job = (await admin.get(f"/v1/admin/jobs/{job_id}")).json()
    assert (job["queue"], job["user_id"], job["state"]) == ("default", str(person.id), "succeeded")
    assert job["args"] == {
        "to": "ada@example.com",
        "subject": "Hi",
        # The first is declared secret, and of the second this release knows nothing.
        "text": "[redacted]",
        "later": "[redacted]",
    }
    assert job["attempts"] == [
        {
            "n": 1,
            "started_at": "2026-01-01T00:00:00.000000Z",
            "finished_at": "2026-01-01T00:00:01.000000Z",
            "worker": "host:1",
            "error": {"code": "timeout", "message": "x"},
        },
        {
            "n": 2,
            "started_at": "2026-01-01T00:00:02.000000Z",
            "finished_at": "2026-01-01T00:00:00.000000Z",
            "worker": "host:2",
            "error": None,
        },
    ]
    assert (job["result"], job["artifacts"]) == ({"sent": True}, [])
    assert job["trace_id"] == "4bf92f3577b34da6a3ce929d0e0e4736"
    strange = await put_in(connection, 2, kind="later.release", args={"password": "x"})
    assert (await admin.get(f"/v1/admin/jobs/{strange}")).json()["args"] == {"password": "[redacted]"}
    assert (await admin.get(f"/v1/admin/jobs/{uuid4()}")).json()["code"] == "job_not_found"


async def test_jobs_of_users_are_cancelled(admin: Person, person: Person, connection: Connection) -> None:
    waiting = await put_in(connection, 1, user_id=str(person.id))
    running = await put_in(connection, 2, user_id=str(person.id), state=1, run_token=str(uuid4()))
    answers = [await admin.post(f"/v1/admin/jobs/{job_id}/cancel") for job_id in (waiting, running)]
    assert [(answer.status_code, answer.json()["state"]) for answer in answers] == [
        (200, "cancelled"),
        (202, "running"),
    ]
    answer = await admin.post(f"/v1/admin/jobs/{waiting}/cancel")
    assert (answer.status_code, answer.json()["code"]) == (409, "job_finished")
    events = (await person.get("/v1/auth/security-events")).json()["items"]
    assert [event["data"] for event in events if event["action"] == "job_cancelled_by_admin"] == [
        {"job_id": running},
        {"job_id": waiting},
    ]
