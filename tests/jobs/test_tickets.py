"""Tickets for the stream of a job: one job, one minute, one use."""

from datetime import timedelta
from uuid import UUID

import pytest
from fastapi import FastAPI

from app.jobs.service import tickets
from tests.fixtures.answers import problem_of
from tests.fixtures.people import MakePerson, Person
from tests.fixtures.servers import Connection
from tests.fixtures.times import in_days

LATER = {"kind": "export.events", "args": {"format": "csv"}, "run_at": in_days(30)}


async def ended(person: Person) -> str:
    """A job whose stream ends at once."""
    job_id = str((await person.post("/v1/jobs", json=LATER)).json()["id"])
    assert (await person.post(f"/v1/jobs/{job_id}/cancel")).status_code == 200
    return job_id


async def url_of(person: Person, job_id: str) -> str:
    answer = await person.post(f"/v1/jobs/{job_id}/events/ticket")
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
    return str(answer.json()["url"])


async def test_a_ticket_opens_the_stream_once_and_no_other(person: Person, connection: Connection) -> None:
    job_id, other_id = await ended(person), await ended(person)
    url = await url_of(person, job_id)
    for wrong in (url.replace(job_id, other_id), url[:-1], f"{url}A", url.partition("=")[0] + "=%C3%A4"):
        problem_of(await person.client.get(wrong), 401, "invalid_ticket")
    answer = await person.client.get(url)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert "event: done" in answer.text
    problem_of(await person.client.get(url), 401, "invalid_ticket")
    assert await connection.fetchval("SELECT count(*) FROM jobs.spent_tickets") == 1
    # The next use forgets those that no ticket can name any more.
    await connection.execute("UPDATE jobs.spent_tickets SET expires_at = now() - interval '1 s'")
    assert (await person.client.get(await url_of(person, job_id))).status_code == 200
    assert await connection.fetchval("SELECT count(*) FROM jobs.spent_tickets") == 1


async def test_a_ticket_ends_after_a_minute(person: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = await ended(person)
    monkeypatch.setattr(tickets, "_TTL", timedelta(0))
    url = await url_of(person, job_id)
    problem_of(await person.client.get(url), 401, "invalid_ticket")


async def test_a_ticket_ends_with_the_credential_that_it_was_made_with(person: Person) -> None:
    job_id = await ended(person)
    url = await url_of(person, job_id)
    assert (await person.post("/v1/auth/logout")).status_code == 204
    problem_of(await person.client.get(url), 401, "token_revoked")


async def test_only_the_owner_gets_a_ticket(person: Person, make_person: MakePerson, app: FastAPI) -> None:
    job_id, stranger = await ended(person), await make_person()
    problem_of(await stranger.post(f"/v1/jobs/{job_id}/events/ticket"), 404, "job_not_found")
    key = (await person.post("/v1/auth/api-keys", json={"name": "k", "scopes": ["jobs:read"]})).json()["key"]
    answer = await person.client.post(f"/v1/jobs/{job_id}/events/ticket", headers={"Authorization": f"Bearer {key}"})
    assert (await person.client.get(answer.json()["url"])).status_code == 200
    forged = tickets.make_ticket(app.state.resources.keys, app.state.resources.clock, UUID(job_id), b"Bearer x")
    problem_of(await person.client.get(f"/v1/jobs/{job_id}/events/stream?ticket={forged}"), 401, "invalid_token")
