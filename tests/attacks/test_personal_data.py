"""What is left of a person once the account is purged: nothing, in no table, in no store, file or log."""

import asyncio
import os
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
import redis.asyncio as redis

from app.settings import Settings
from app.worker import Worker
from tests.fixtures.authenticator import Authenticator
from tests.fixtures.people import PASSWORD, MakePerson, Person
from tests.fixtures.servers import Connection
from tests.fixtures.waiting import eventually
from tests.identity.conftest import LogIn, Mailbox
from tests.identity.test_passkeys import add as add_passkey
from tests.jobs.test_invoices import INVOICE

# Each text is of the person alone, and so stands for what must not be left.
MARKERS = [
    *("first.zanzibar@example.com", "second.zanzibar@example.com", "third.zanzibar@example.com"),
    *("zanzibar", "Zanzibar", "ZANZIBAR"),
]
NAMES = "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname !~ '^(pg_|information_schema)'"


async def tables_with_markers(connection: Connection) -> set[str]:
    found = set()
    for (name,) in await connection.fetch(NAMES):
        for (text,) in await connection.fetch(f"SELECT to_jsonb(t)::text FROM {name} AS t"):  # noqa: S608 - a table's name
            if "zanzibar" in text.lower():
                found.add(name)
    return found


async def keys_with_markers(url: str) -> set[bytes]:
    client = redis.Redis.from_url(url)
    found = set()
    async for key in client.scan_iter(count=1000):
        # One may expire between the two calls.
        if b"zanzibar" in (key + (await client.dump(key) or b"")).lower():
            found.add(key)
    await client.aclose()
    return found


def files_with_markers(folder: Path) -> set[str]:
    paths = [Path(place) / name for place, _, names in os.walk(folder) for name in names]
    return {path.name for path in paths if b"zanzibar" in path.read_bytes().lower() or "zanzibar" in str(path)}


async def finish(person: Person, kind: str, count: int) -> None:
    async def is_over() -> bool:
        items = (await person.get(f"/v1/jobs?kind={kind}")).json()["items"]
        return [job["state"] for job in items] == ["succeeded"] * count

    await eventually(is_over, within=30)


async def use_everything(
    client: httpx.AsyncClient, person: Person, other: Person, mailbox: Mailbox, connection: Connection, log_in: LogIn
) -> Person:
    """Leaves traces of the person everywhere, the address among them; answers who they are in the end."""
    client.headers["User-Agent"] = "Zanzibar/1"
    verify = await mailbox.letter(person.email, "Verify your e-mail address")
    await client.post("/v1/auth/email/verify", json={"token": verify.token})
    await client.post("/v1/auth/login", json={"email": person.email, "password": "Zanzibar, wrong"})
    for path in ("password/forgot", "email/resend"):
        await client.post(f"/v1/auth/{path}", json={"email": person.email})
    change = {"new_email": "second.zanzibar@example.com", "current_password": PASSWORD}
    # The first proof of an address ends the sessions before it.
    person = await log_in(person)
    assert (await person.post("/v1/auth/email/change", json=change)).status_code == 202
    letter = await mailbox.letter("second.zanzibar@example.com", "Confirm your new e-mail address")
    confirmed = await client.post("/v1/auth/email/confirm", json={"token": letter.token})
    assert confirmed.status_code == 200, confirmed.text
    # An administrator whose acts are on file with the accounts of others.
    await connection.execute("UPDATE identity.accounts SET role = 'admin' WHERE user_id = $1", person.id)
    person = await log_in(person, email="second.zanzibar@example.com", device_name="Zanzibar's laptop")
    assert (await person.post(f"/v1/admin/users/{other.id}/ban", json={"reason": "x"})).status_code == 204
    assert (await person.post(f"/v1/admin/users/{other.id}/unban")).status_code == 204
    await person.post("/v1/auth/email/change", json=change | {"new_email": "third.zanzibar@example.com"})
    await mailbox.letter("third.zanzibar@example.com", "Confirm your new e-mail address")
    await client.post("/v1/auth/password/forgot", json={"email": "Second.Zanzibar@example.com"})

    calls: list[tuple[str, str, dict[str, Any]]] = [
        ("PATCH", "/v1/users/me", {"bio": "of Zanzibar", "avatar_url": "https://zanzibar.example/a.png"}),
        ("PATCH", "/v1/users/me/preferences", {"extra": {"home": "Zanzibar"}}),
        ("POST", "/v1/events", {"kind": "zanzibar.seen", "properties": {"where": "Zanzibar"}}),
        ("POST", "/v1/auth/api-keys", {"name": "Zanzibar", "scopes": ["events:read"]}),
        (
            "POST",
            "/v1/webhooks/endpoints",
            {"url": "https://93.184.216.34/zanzibar", "event_types": ["*"], "description": "Zanzibar"},
        ),
        ("POST", "/v1/jobs", {"kind": "export.events", "args": {"format": "csv"}, "unique_key": "zanzibar"}),
        ("POST", "/v1/jobs", {"kind": "export.account", "args": {}}),
        (
            "POST",
            "/v1/invoices",
            INVOICE
            | {
                "number": "ZANZIBAR-1",
                "notes": "Zanzibar",
                "customer": {"name": "Zanzibar", "email": "second.zanzibar@example.com", "address": "Zanzibar"},
            },
        ),
    ]
    for number, (method, url, body) in enumerate(calls):
        key = {"Idempotency-Key": f"zanzibar-{number}"}
        answer = await person.request(method, url, json=body, headers=key)
        assert answer.is_success, (url, answer.text)
    assert (await add_passkey(person, Authenticator(), name="Zanzibar")).status_code == 201
    for query in ("limit=1", "limit=2", "limit=3"):
        assert (await person.get(f"/v1/users/me/events?{query}")).status_code == 200
    for url in ("/v1/overview", "/v1/users/me", "/v1/users/me/events", "/v1/users/me/preferences", "/v1/invoices"):
        assert (await person.get(url)).status_code == 200
    await connection.execute(
        "INSERT INTO jobs.email_suppressions VALUES (decode($1, 'hex'), 'SMTP 550 5.1.1', now())", uuid4().hex
    )
    await finish(person, "export.events", 1)
    await finish(person, "export.account", 1)
    await finish(person, "invoice.email", 1)
    return person


@pytest.mark.slow
@pytest.mark.settings(APP_IDENTITY_DELETION_GRACE="3600", APP_CACHE_TTL="3600")
async def test_nothing_of_a_person_is_left_after_the_purge(
    client: httpx.AsyncClient,
    make_person: MakePerson,
    log_in: LogIn,
    mailbox: Mailbox,
    worker: Worker,
    settings: Settings,
    connection: Connection,
    redis_url: str,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    stays, other = await make_person(email="admin@example.com"), await make_person(email="charles@example.com")
    await connection.execute("UPDATE identity.accounts SET role = 'admin' WHERE user_id = $1", stays.id)
    person = await make_person(email="first.zanzibar@example.com", display_name="Zanzibar")
    person = await use_everything(client, person, other, mailbox, connection, log_in)
    customer = {"name": "Zanzibar", "email": "second.zanzibar@example.com", "address": "x"}
    client.headers["User-Agent"] = "a browser"
    # The ban has ended their session.
    other = await log_in(other)
    kept = await other.post("/v1/invoices", json=INVOICE | {"customer": customer})
    assert kept.status_code == 202

    # The test sees what there is, so that it can say that it is gone.
    assert await tables_with_markers(connection) == {
        *("identity.accounts", "identity.api_keys", "identity.security_events", "identity.sessions"),
        *("identity.one_time_tokens", "identity.passkeys", "jobs.jobs", "jobs.invoices", "jobs.webhook_endpoints"),
        *("jobs.webhook_messages", "users.events", "users.preferences", "users.users"),
    }
    # The keys and answers of these are not legible.
    kept_answers = "SELECT count(*) FROM kernel.idempotency_keys WHERE caller = $1"
    assert await connection.fetchval(kept_answers, str(person.id)) > 0
    assert len(await asyncio.to_thread(files_with_markers, settings.data_dir)) > 5
    entries = {key for key in await keys_with_markers(redis_url) if key.startswith(b"cache:entry:")}
    assert len(entries) >= 4

    closed = await person.request("DELETE", "/v1/users/me", json={"current_password": PASSWORD})
    assert closed.status_code == 202, closed.text
    await mailbox.letter("second.zanzibar@example.com", "Your account was closed")
    await connection.execute("DELETE FROM jobs.jobs WHERE user_id = $1", other.id)
    await connection.execute("UPDATE jobs.jobs SET run_at = now() WHERE kind = 'users.purge'")

    async def is_purged() -> bool:
        return bool(
            await connection.fetchval("SELECT email = 'deleted' FROM identity.accounts WHERE user_id = $1", person.id)
        )

    await eventually(is_purged, within=30)
    # An invoice that another account has issued is that account's.
    assert await connection.fetchval("SELECT array_agg(user_id) FROM jobs.invoices") == [other.id]
    await connection.execute("DELETE FROM jobs.invoices")
    assert await tables_with_markers(connection) == set()
    assert await connection.fetchval(kept_answers, str(person.id)) == 0

    # The purge drops them a moment after the rows, and no new ones are made for a closed account.
    async def are_copies_gone() -> bool:
        return await keys_with_markers(redis_url) == set()

    await eventually(are_copies_gone, within=30)
    assert await asyncio.to_thread(files_with_markers, settings.data_dir) == set()
    printed = capfd.readouterr()
    for text in (caplog.text, printed.out, printed.err):
        assert [marker for marker in MARKERS if marker in text] == []
    events = await connection.fetch(
        "SELECT ip, user_agent FROM identity.security_events WHERE actor_id = $1", person.id
    )
    assert {tuple(event) for event in events} == {(None, None)}


@pytest.mark.settings(APP_IDENTITY_DELETION_GRACE="0")
async def test_a_purge_waits_for_the_last_message(
    make_person: MakePerson, mailbox: Mailbox, connection: Connection
) -> None:
    person = await make_person(email="ada@example.com")
    await connection.execute("INSERT INTO jobs.lanes (lane, paused_at) VALUES ('critical', now())")
    await person.request("DELETE", "/v1/users/me", json={"current_password": PASSWORD})
    await connection.execute("DELETE FROM jobs.lanes")
    await mailbox.letter("ada@example.com", "Your account was closed")

    async def is_purged() -> bool:
        jobs = "SELECT count(*) FROM jobs.jobs WHERE args::text LIKE '%ada@example.com%'"
        return bool(await connection.fetchval(jobs) == 0) and mailbox.letters("ada@example.com") == []

    await eventually(is_purged, within=30)
