"""Events, and which endpoints hear of them."""

import asyncio
import json
from typing import Any, TypeAlias
from uuid import UUID

import asyncpg
import pytest
from fastapi import FastAPI

from app.identity.api import IdentityServices
from app.jobs.api import JOB_KINDS
from app.settings import Settings
from app.worker import open_worker
from tests.fixtures.application import Budget
from tests.fixtures.people import MakePerson, Person
from tests.fixtures.waiting import eventually
from tests.jobs.receiver import LOCAL, Receiver, register, settled

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


@LOCAL
async def test_a_finished_job_is_an_event_for_who_wants_it(
    person: Person, make_person: MakePerson, receiver: Receiver, settings: Settings, connection: Connection
) -> None:
    trace = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    await register(person, receiver.url, "job.succeeded")
    await register(person, receiver.url, "job.failed", "invoice.issued")
    await register(await make_person(), receiver.url)
    async with open_worker(settings, JOB_KINDS):
        body = {"kind": "export.events", "args": {"format": "csv"}}
        job = (await person.post("/v1/jobs", json=body, headers=trace)).json()
        (delivery,) = await settled(person)
    assert delivery["event_type"] == "job.succeeded"
    assert len(receiver.requests) == 1
    event = json.loads(receiver.requests[0][1])
    assert (event["type"], event["data"]) == ("job.succeeded", {"job_id": job["id"], "kind": "export.events"})
    traces = await connection.fetch("SELECT trace_parent FROM jobs.jobs WHERE kind = 'webhook.deliver'")
    assert [row["trace_parent"] for row in traces] == [trace["traceparent"]]


async def published(connection: Connection) -> list[tuple[str, dict[str, Any]]]:
    rows = await connection.fetch(
        "SELECT user_id, lane AS queue, args::text FROM jobs.jobs WHERE kind = 'webhook.publish' ORDER BY id"
    )
    assert all(row["queue"] == "webhooks" and row["user_id"] is not None for row in rows)
    events = [json.loads(row["args"]) for row in rows]
    return [(event["event_type"], event["data"]) for event in events]


async def test_who_does_not_listen_pays_nothing(person: Person, connection: Connection, budget: Budget) -> None:
    with budget(1):
        assert (await person.patch("/v1/users/me", json={"bio": "a"})).status_code == 200
    with budget(1):
        assert (await person.post("/v1/auth/logout")).status_code == 204
    assert await published(connection) == []


@LOCAL
async def test_changes_of_an_account_are_events_for_who_listens(
    person: Person, make_person: MakePerson, receiver: Receiver, connection: Connection, settings: Settings
) -> None:
    await register(person, receiver.url)
    stranger = await make_person()
    assert (await stranger.patch("/v1/users/me", json={"bio": "b"})).status_code == 200
    assert (await person.patch("/v1/users/me", json={"bio": "a", "display_name": "A"})).status_code == 200
    assert (await person.patch("/v1/users/me", json={"bio": "c"}, headers={"If-Match": '"x"'})).status_code == 412
    login = {"email": person.email, "password": person.password}
    other = (await person.client.post("/v1/auth/login", json=login)).json()["tokens"]["access_token"]
    ended = await person.client.post("/v1/auth/logout", headers={"Authorization": f"Bearer {other}"})
    assert ended.status_code == 204
    closed = await person.request("DELETE", "/v1/users/me", json={"current_password": person.password})
    assert closed.status_code == 202
    revoked = await connection.fetch(
        "SELECT id, revoke_reason FROM identity.sessions WHERE user_id = $1 AND revoked_at IS NOT NULL", person.id
    )
    sessions = {row["revoke_reason"]: str(row["id"]) for row in revoked}
    me = str(person.id)
    assert await published(connection) == [
        ("user.updated", {"user_id": me, "fields": ["bio", "display_name"]}),
        ("session.revoked", {"session_id": sessions["logged_out"], "reason": "logged_out"}),
        ("session.revoked", {"session_id": sessions["account_deleted"], "reason": "account_deleted"}),
        ("user.deleted", {"user_id": me}),
    ]

    async def are_over() -> bool:
        # Two events, each with a delivery; what was waiting when the account was closed is cancelled (ADR 0046).
        return [
            tuple(row)
            for row in await connection.fetch(
                "SELECT state, count(*) FROM jobs.jobs WHERE user_id = $1 GROUP BY state ORDER BY state", person.id
            )
        ] == [(2, 4), (4, 2)]

    async with open_worker(settings, JOB_KINDS):
        await eventually(are_over)
    assert sorted(json.loads(body)["type"] for _, body in receiver.requests) == ["session.revoked", "user.deleted"]


@LOCAL
async def test_a_job_that_ends_in_its_own_transaction_or_with_its_workers_is_an_event_too(
    person: Person, receiver: Receiver, settings: Settings, connection: Connection
) -> None:
    await register(person, receiver.url, "job.succeeded", "job.failed")
    period = {"since": "2026-03-02T00:00:00Z", "until": "2026-03-09T00:00:00Z", "mail": True}
    made = (await person.post("/v1/jobs", json={"kind": "report.activity", "args": period})).json()
    poison = (await person.post("/v1/jobs", json={"kind": "export.events", "args": {"format": "csv"}})).json()
    await connection.execute(
        """
        UPDATE jobs.jobs SET state = 1, attempt = 8, max_attempts = 8, run_token = gen_random_uuid(),
                             worker_id = 'gone', started_at = now(), lease_until = now() - interval '1 minute',
                             dispatched_at = NULL
        WHERE id = $1
        """,
        UUID(poison["id"]),
    )
    jobs = settings.jobs.model_copy(update={"heartbeat": 0.1, "lease": 1.0})
    async with open_worker(settings.model_copy(update={"jobs": jobs}), JOB_KINDS):
        await eventually(lambda: len(receiver.requests) == 2)
    events = [json.loads(body) for _, body in receiver.requests]
    assert {event["type"]: event["data"] for event in events} == {
        "job.succeeded": {"job_id": made["id"], "kind": "report.activity"},
        "job.failed": {"job_id": poison["id"], "kind": "export.events"},
    }


@LOCAL
async def test_a_registration_is_an_event_for_administrators_who_name_it(
    make_person: MakePerson, receiver: Receiver, settings: Settings, connection: Connection
) -> None:
    admin, ordinary, everything = [await make_person() for _ in range(3)]
    for administrator in (admin, everything):
        await connection.execute("UPDATE identity.accounts SET role = 'admin' WHERE user_id = $1", administrator.id)
    await make_person()
    assert await connection.fetchval("SELECT count(*) FROM jobs.jobs WHERE kind = 'webhook.publish'") == 0
    for listener in (admin, ordinary):
        await register(listener, receiver.url, "user.registered")
    await register(everything, receiver.url, "*")
    newcomer = await make_person()
    async with open_worker(settings, JOB_KINDS):
        (delivery,) = await settled(admin)
        assert delivery["event_type"] == "user.registered"
        for listener in (ordinary, everything):
            assert (await listener.get("/v1/webhooks/deliveries")).json()["items"] == []
    events = [json.loads(body) for _, body in receiver.requests]
    assert [(event["type"], event["data"]) for event in events] == [("user.registered", {"user_id": str(newcomer.id)})]


@LOCAL
@pytest.mark.settings(APP_IDENTITY_MAX_SESSIONS="2")
async def test_a_log_in_that_ends_another_session_is_three_statements_for_who_listens_too(
    person: Person, receiver: Receiver, connection: Connection, budget: Budget
) -> None:
    await register(person, receiver.url, "session.revoked")
    login = {"email": person.email, "password": person.password}
    (first,) = await connection.fetch("SELECT id FROM identity.sessions")
    for ended in ([], [first["id"]]):
        with budget(3):
            assert (await person.client.post("/v1/auth/login", json=login)).status_code == 200
        await eventually(lambda: has_published(connection, ended))  # noqa: B023 - used at once


async def has_published(connection: Connection, sessions: list[UUID]) -> bool:
    data = [{"session_id": str(session), "reason": "too_many_sessions"} for session in sessions]
    return await published(connection) == [("session.revoked", item) for item in data]


@pytest.mark.settings(APP_IDENTITY_MAX_SESSIONS="1")
async def test_the_end_of_a_session_that_a_dead_process_has_not_published_is_published_once(
    person: Person, make_person: MakePerson, connection: Connection, app: FastAPI
) -> None:
    identity: IdentityServices = app.state.identity
    other = await make_person()
    login = {"email": other.email, "password": other.password}
    assert (await person.client.post("/v1/auth/login", json=login)).status_code == 200
    # No endpoint subscribes to that one; the mark of the other is all that is left of its maker.
    await identity.ends.publish()
    assert await published(connection) == []
    session = await connection.fetchval(
        "UPDATE identity.sessions SET revoked_at = now(), has_unpublished_end = true WHERE user_id = $1 RETURNING id",
        person.id,
    )
    await asyncio.gather(*(identity.ends.publish() for _ in range(5)))
    assert await has_published(connection, [session])
