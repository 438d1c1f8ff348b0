"""A job gives its caller nothing that other routes refuse; start, cancel, retry and download need the same scopes."""

from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from app.jobs.api import JOB_KINDS
from app.kernel.auth import SCOPES_OF_ROLE
from tests.fixtures.answers import problem_of
from tests.fixtures.people import Person
from tests.fixtures.servers import Connection

PUBLIC = {name: kind for name, kind in JOB_KINDS.items() if kind.public}
ARGS: dict[str, dict[str, Any]] = {
    "export.account": {},
    "export.events": {"format": "csv"},
    "report.activity": {"since": "2026-01-01T00:00:00Z", "until": "2026-02-01T00:00:00Z"},
}
LACKING = [(name, scope) for name, kind in sorted(PUBLIC.items()) for scope in sorted(kind.access.scopes)]

ADD_FILE = """
INSERT INTO jobs.artifacts (job_id, name, user_id, content_type, size, sha256, storage_key, expires_at)
VALUES ($1, 'file', $2, 'text/plain', 0, '\\x00', 'x', now() + interval '1 day')
"""


def test_every_public_kind_says_what_it_reads() -> None:
    assert PUBLIC.keys() == ARGS.keys()
    assert all(kind.access.scopes for kind in PUBLIC.values())
    # What no API key is shown by any route is in it.
    assert [name for name, kind in PUBLIC.items() if kind.access.needs_session] == ["export.account"]


async def key_with(owner: Person, scopes: set[str]) -> dict[str, str]:
    answer = await owner.post("/v1/auth/api-keys", json={"name": "k", "scopes": sorted(scopes)})
    return {"Authorization": f"Bearer {answer.json()['key']}"}


async def narrowed(owner: Person, scopes: set[str]) -> dict[str, str]:
    form = {"grant_type": "password", "username": owner.email, "password": owner.password}
    answer = await owner.client.post("/v1/auth/token", data=form | {"scope": " ".join(sorted(scopes))})
    return {"Authorization": f"Bearer {answer.json()['access_token']}"}


async def finished(owner: Person, connection: Connection, kind: str) -> str:
    """The id of a failed job of this kind that has a file all the same."""
    job = (await owner.post("/v1/jobs", json={"kind": kind, "args": ARGS[kind]})).json()["id"]
    await connection.execute("UPDATE jobs.jobs SET state = 3, finished_at = now() WHERE id = $1", UUID(job))
    await connection.execute(ADD_FILE, UUID(job), owner.id)
    return str(job)


async def check_refused(
    client: httpx.AsyncClient, connection: Connection, kind: str, job: str, headers: dict[str, str], code: str
) -> None:
    """All ways to the content are refused with this code, and nothing has changed."""
    before = await connection.fetch("SELECT id, state, version FROM jobs.jobs ORDER BY id")
    answers = [
        await client.post("/v1/jobs", headers=headers, json={"kind": kind, "args": ARGS[kind]}),
        await client.post(
            "/v1/jobs",
            headers=headers | {"Idempotency-Key": str(uuid4())},
            json={"kind": kind, "args": ARGS[kind], "unique_key": "k"},
        ),
        await client.post(f"/v1/jobs/{job}/cancel", headers=headers),
        await client.post(f"/v1/jobs/{job}/retry", headers=headers),
        await client.get(f"/v1/jobs/{job}/artifacts/file", headers=headers),
    ]
    assert await connection.fetch("SELECT id, state, version FROM jobs.jobs ORDER BY id") == before
    for answer in answers:
        problem_of(answer, 403, code)


@pytest.mark.parametrize(("kind", "scope"), LACKING)
async def test_a_scope_of_what_the_job_reads_is_needed(
    client: httpx.AsyncClient, person: Person, connection: Connection, kind: str, scope: str
) -> None:
    job = await finished(person, connection, kind)
    for headers in (
        await key_with(person, {*SCOPES_OF_ROLE["user"]} - {scope}),
        await narrowed(person, {*SCOPES_OF_ROLE["user"]} - {scope}),
    ):
        await check_refused(client, connection, kind, job, headers, "insufficient_scope")


async def test_a_copy_of_the_account_is_for_whole_sessions(
    client: httpx.AsyncClient, person: Person, connection: Connection
) -> None:
    job = await finished(person, connection, "export.account")
    for headers in (
        await key_with(person, {*SCOPES_OF_ROLE["user"]}),
        await narrowed(person, {*PUBLIC["export.account"].access.scopes, "jobs:write"}),
    ):
        await check_refused(client, connection, "export.account", job, headers, "session_required")


async def test_an_api_key_with_the_scopes_exports_events(client: httpx.AsyncClient, person: Person) -> None:
    headers = await key_with(person, {"jobs:write", "events:read"})
    for kind in ("export.events", "report.activity"):
        answer = await client.post("/v1/jobs", headers=headers, json={"kind": kind, "args": ARGS[kind]})
        assert answer.status_code == 202, answer.text


async def test_each_copy_of_the_account_is_an_entry(person: Person, connection: Connection) -> None:
    job = (await person.post("/v1/jobs", json={"kind": "export.account", "args": {}})).json()["id"]
    for number in (2, 3):
        assert (await person.post(f"/v1/jobs/{job}/cancel")).status_code == 200
        assert (await person.post(f"/v1/jobs/{job}/retry")).status_code == 202
        entries = await connection.fetchval(
            "SELECT count(*) FROM identity.security_events WHERE user_id = $1 AND action = 'account_export_requested'",
            person.id,
        )
        assert entries == number


async def test_copies_by_repetition_have_the_same_limit(person: Person, connection: Connection) -> None:
    job = (await person.post("/v1/jobs", json={"kind": "export.account", "args": {}})).json()["id"]
    assert (await person.post(f"/v1/jobs/{job}/cancel")).status_code == 200
    await connection.execute(
        """
        INSERT INTO identity.security_events (user_id, id, action, created_at)
        SELECT e.user_id, overlay(e.id::text PLACING lpad(n::text, 12, '0') FROM 25)::uuid, e.action, e.created_at
        FROM identity.security_events AS e, generate_series(1, 500) AS n
        WHERE e.user_id = $1 AND e.action = 'account_export_requested'
        """,
        person.id,
    )
    answer = await person.post(f"/v1/jobs/{job}/retry")
    problem_of(answer, 429, "too_many_attempts")
    assert (await person.get(f"/v1/jobs/{job}")).json()["state"] == "cancelled"
