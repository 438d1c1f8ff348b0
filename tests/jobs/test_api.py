"""`/v1/jobs` as callers see it: submission, lists, cancellation and retry."""

from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias
from uuid import UUID, uuid4

import asyncpg
import pytest

from app.settings import Settings
from app.worker import open_worker
from tests.fixtures.people import MakePerson, Person
from tests.fixtures.waiting import eventually
from tests.jobs.calls import finished, submit
from tests.jobs.kinds import Steps, kinds_of

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
EXPORT = {"kind": "export.events", "args": {"format": "csv"}}
FIELDS = {
    "id",
    "kind",
    "state",
    "attempt",
    "max_attempts",
    "progress",
    "result",
    "error",
    "artifacts",
    "created_at",
    "started_at",
    "finished_at",
}


async def test_a_job_continues_the_trace_of_its_request(person: Person, connection: Connection) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    assert (await person.post("/v1/jobs", json=EXPORT, headers={"traceparent": trace})).status_code == 202
    assert (await person.post("/v1/jobs", json=EXPORT, headers={"traceparent": "nonsense"})).status_code == 202
    rows = await connection.fetch("SELECT trace_parent FROM jobs.jobs ORDER BY id")
    assert [row["trace_parent"] for row in rows] == [trace, None]


async def test_a_submitted_job_is_answered_with_one_statement(
    person: Person, budget: Any, connection: Connection
) -> None:
    with budget(1):
        answer = await person.post("/v1/jobs", json=EXPORT)
    assert answer.status_code == 202
    job = answer.json()
    assert set(job) == FIELDS
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert (job["kind"], job["state"], job["attempt"], job["artifacts"]) == ("export.events", "queued", 0, [])
    row = await connection.fetchrow("SELECT id::text, user_id, lane AS queue, args FROM jobs.jobs")
    assert row is not None
    assert tuple(row) == (job["id"], person.id, "bulk", '{"format": "csv"}')
    assert (await person.get(f"/v1/jobs/{job['id']}")).json() == job


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"kind": "export.events", "args": {}}, "#/args/format"),
        ({"kind": "export.events", "args": {"format": "doc"}}, "#/args/format"),
        ({"kind": "export.events", "args": {"format": "csv", "a/b": 1}}, "#/args/a~1b"),
        ({"kind": "export.events", "args": {"format": "csv", "since": "2026-01-01T00:00:00"}}, "#/args/since"),
        ({"kind": "export.events", "args": {"format": "csv", "since": "0001-01-01T00:00:00+14:00"}}, "#/args/since"),
        (
            {
                "kind": "export.events",
                "args": {"format": "csv", "since": "2026-01-02T00:00:00Z", "until": "2026-01-01T00:00:00Z"},
            },
            "#/args",
        ),
        ({"kind": "email.steal", "args": {}}, "#/kind"),
        ({"kind": "export.events", "args": {"format": "csv", "limit": 2**64}}, "#/args"),
        ({"kind": "export.events"}, "#/args"),
        ({"kind": "export.events", "args": [], "x": 1}, "#/args"),
        ({"kind": "export.events", "args": {"format": "csv"}, "run_at": "tomorrow"}, "#/run_at"),
        ({"kind": "export.events", "args": {"format": "csv"}, "unique_key": ""}, "#/unique_key"),
    ],
)
async def test_what_is_not_valid_is_refused(
    person: Person, connection: Connection, body: dict[str, Any], pointer: str
) -> None:
    answer = await person.post("/v1/jobs", json=body)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert pointer in {error["pointer"] for error in answer.json()["errors"]}
    assert await connection.fetchval("SELECT count(*) FROM jobs.jobs") == 0


async def test_the_same_idempotency_key_is_one_job(person: Person, connection: Connection) -> None:
    key = {"Idempotency-Key": str(uuid4())}
    first = await person.post("/v1/jobs", json=EXPORT, headers=key)
    again = await person.post("/v1/jobs", json=EXPORT, headers=key)
    assert (first.status_code, again.status_code) == (202, 202)
    assert again.json() == first.json()
    assert again.headers["idempotent-replayed"] == "true"
    other = await person.post("/v1/jobs", json=EXPORT | {"unique_key": "x"}, headers=key)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    assert await connection.fetchval("SELECT count(*) FROM jobs.jobs") == 1


async def test_a_living_unique_key_answers_with_its_job(person: Person, make_person: MakePerson, budget: Any) -> None:
    body = EXPORT | {"unique_key": "nightly"}
    first = await person.post("/v1/jobs", json=body)
    with budget(1):
        again = await person.post("/v1/jobs", json=body)
    assert (first.status_code, again.status_code) == (202, 200)
    assert again.json() == first.json()
    stranger = await (await make_person()).post("/v1/jobs", json=body)
    assert stranger.status_code == 202
    assert stranger.json()["id"] != first.json()["id"]


@pytest.mark.usefixtures("test_kinds")
async def test_jobs_of_others_do_not_exist(person: Person, make_person: MakePerson, connection: Connection) -> None:
    job = await submit(person, "test.noop")
    stranger = await make_person()
    before = await connection.fetch("SELECT * FROM jobs.jobs")
    for method, path in [
        ("GET", ""),
        ("GET", "/events"),
        ("POST", "/cancel"),
        ("POST", "/retry"),
        ("GET", "/artifacts/x"),
    ]:
        answer = await stranger.request(method, f"/v1/jobs/{job['id']}{path}")
        assert answer.status_code == 404, path
    assert await connection.fetch("SELECT * FROM jobs.jobs") == before
    assert (await stranger.get("/v1/jobs")).json() == {"items": [], "next_cursor": None}


@pytest.mark.usefixtures("test_kinds")
async def test_a_queued_job_is_cancelled_at_once_and_can_be_retried(
    person: Person, connection: Connection, steps: Steps, settings: Settings
) -> None:
    job = await submit(person, "test.noop", 3)
    cancelled = await person.post(f"/v1/jobs/{job['id']}/cancel")
    assert (cancelled.status_code, cancelled.json()["state"]) == (200, "cancelled")
    again = await person.post(f"/v1/jobs/{job['id']}/cancel")
    assert (again.status_code, again.json()["code"]) == (409, "job_finished")
    retried = await person.post(f"/v1/jobs/{job['id']}/retry")
    assert (retried.status_code, retried.json()["state"]) == (202, "queued")
    twice = await person.post(f"/v1/jobs/{job['id']}/retry")
    assert (twice.status_code, twice.json()["code"]) == (409, "job_not_retryable")
    async with open_worker(settings, kinds_of(steps)):
        assert (await finished(person, job["id"]))["result"] == {"number": 3}


@pytest.mark.usefixtures("test_kinds", "api_worker")
async def test_a_running_job_is_asked_to_stop(person: Person, steps: Steps) -> None:
    job = await submit(person, "test.wait")
    await eventually(lambda: len(steps.started) == 1)
    answer = await person.post(f"/v1/jobs/{job['id']}/cancel")
    assert (answer.status_code, answer.json()["state"]) == (202, "running")
    # By itself it would go on for ten minutes.
    ended = await finished(person, job["id"])
    assert (ended["state"], ended["error"]["code"]) == ("cancelled", "cancelled")
    assert steps.ended == []


@pytest.mark.usefixtures("test_kinds")
async def test_retry_is_refused_while_another_job_holds_the_unique_key(person: Person) -> None:
    first = await submit(person, "test.noop", unique_key="one")
    await person.post(f"/v1/jobs/{first['id']}/cancel")
    await submit(person, "test.noop", unique_key="one")
    answer = await person.post(f"/v1/jobs/{first['id']}/retry")
    assert (answer.status_code, answer.json()["code"]) == (409, "unique_key_in_use")


@pytest.mark.usefixtures("test_kinds")
async def test_pages_are_stable_while_jobs_arrive(person: Person, make_person: MakePerson) -> None:
    made = [(await submit(person, "test.noop", n))["id"] for n in range(5)]
    first = (await person.get("/v1/jobs", params={"limit": 2})).json()
    await submit(person, "test.noop")
    second = (await person.get("/v1/jobs", params={"limit": 2, "cursor": first["next_cursor"]})).json()
    third = (await person.get("/v1/jobs", params={"limit": 2, "cursor": second["next_cursor"]})).json()
    seen = [job["id"] for page in (first, second, third) for job in page["items"]]
    assert seen == list(reversed(made))
    assert third["next_cursor"] is None
    stranger = await make_person()
    foreign = await stranger.get("/v1/jobs", params={"cursor": first["next_cursor"]})
    assert (foreign.status_code, foreign.json()["code"]) == (400, "invalid_cursor")
    refiltered = await person.get("/v1/jobs", params={"cursor": first["next_cursor"], "state": "queued"})
    assert refiltered.status_code == 400


@pytest.mark.usefixtures("test_kinds")
async def test_lists_are_filtered_by_state_and_kind(person: Person, connection: Connection) -> None:
    queued = await submit(person, "test.noop")
    scheduled = await submit(person, "test.wait", run_at=(datetime.now(UTC) + timedelta(days=1)).isoformat())
    cancelled = await submit(person, "test.wait")
    await person.post(f"/v1/jobs/{cancelled['id']}/cancel")
    retrying = await submit(person, "test.flaky")
    await connection.execute("UPDATE jobs.jobs SET attempt = 1 WHERE id = $1", UUID(retrying["id"]))
    assert scheduled["state"] == "scheduled"
    expected = {
        "state=queued": [queued],
        "state=scheduled": [scheduled],
        "state=cancelled": [cancelled],
        "state=retrying": [retrying],
        "state=running": [],
        "kind=test.wait": [cancelled, scheduled],
        "kind=test.wait&state=scheduled": [scheduled],
    }
    for query, jobs in expected.items():
        items = (await person.get(f"/v1/jobs?{query}")).json()["items"]
        assert [job["id"] for job in items] == [job["id"] for job in jobs], query
    for query in ("state=done", "limit=0", "limit=101", "unknown=1"):
        assert (await person.get(f"/v1/jobs?{query}")).status_code == 422


async def test_callers_need_the_scope(client: Any, person: Person) -> None:
    assert (await client.post("/v1/jobs", json=EXPORT)).status_code == 401
    assert (await client.get("/v1/jobs")).status_code == 401
    assert (await person.get("/v1/jobs")).status_code == 200
