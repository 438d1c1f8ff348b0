"""A request, a job or a link is bound to the state of the account that it was made in, and ends with it."""

import asyncio
from collections import Counter
from typing import Any

import httpx
import pyotp
import pytest

from app.identity.api import IdentityServices, operator
from app.jobs.api import pause_queue
from app.kernel.clock import SystemClock
from app.worker import Worker
from tests.attacks.blockade import Blockade
from tests.fixtures.answers import problem_of
from tests.fixtures.clocks import ManualClock
from tests.fixtures.people import PASSWORD, MakePerson, Person
from tests.fixtures.servers import Connection
from tests.fixtures.waiting import eventually
from tests.identity.conftest import LogIn, Mailbox
from tests.jobs.receiver import LOCAL

# As in production: each request that waits for a lock has a connection.
pytestmark = pytest.mark.settings(APP_DATABASE_POOL_SIZE="10")

NEW = "a new horse 2026"
THIEF = "thief@example.com"
CHANGE = {"new_email": THIEF, "current_password": PASSWORD}


async def proven(client: httpx.AsyncClient, mailbox: Mailbox, log_in: LogIn, person: Person) -> Person:
    letter = await mailbox.letter(person.email, "Verify your e-mail address")
    assert (await client.post("/v1/auth/email/verify", json={"token": letter.token})).status_code == 200
    return await log_in(person)


async def reset_body(client: httpx.AsyncClient, mailbox: Mailbox, email: str) -> dict[str, str]:
    assert (await client.post("/v1/auth/password/forgot", json={"email": email})).status_code == 202
    letter = await mailbox.letter(email, "Set a new password")
    return {"token": letter.token, "new_password": NEW}


async def settled(connection: Connection) -> None:
    """Returns once no job is left to do."""

    async def is_done() -> bool:
        return bool(await connection.fetchval("SELECT count(*) FROM jobs.jobs WHERE state < 2") == 0)

    await eventually(is_done, within=30)


async def snapshot(connection: Connection, person: Person) -> dict[str, Any]:
    queries = {
        "email": "SELECT email FROM identity.accounts WHERE user_id = $1",
        "sessions": "SELECT count(*) FROM identity.sessions WHERE user_id = $1 AND revoked_at IS NULL",
        "keys": "SELECT count(*) FROM identity.api_keys WHERE user_id = $1 AND revoked_at IS NULL",
        "factors": "SELECT count(*) FROM identity.totp_factors WHERE user_id = $1",
        "codes": "SELECT count(*) FROM identity.recovery_codes WHERE user_id = $1",
        "links": "SELECT count(*) FROM identity.one_time_tokens WHERE user_id = $1",
        "endpoints": "SELECT count(*) FROM jobs.webhook_endpoints WHERE user_id = $1",
    }
    return {name: await connection.fetchval(query, person.id) for name, query in queries.items()}


IN_FLIGHT: dict[str, list[tuple[str, str, dict[str, Any], dict[str, str]]]] = {
    "keys": [
        ("POST", "/v1/auth/api-keys", {"name": "k", "scopes": ["profile:read"]}, {}),
        ("POST", "/v1/auth/api-keys", {"name": "k", "scopes": ["profile:read"]}, {"Idempotency-Key": "k"}),
        ("POST", "/v1/webhooks/endpoints", {"url": "http://127.0.0.1:9/", "event_types": ["invoice.issued"]}, {}),
    ],
    "factors and addresses": [
        ("POST", "/v1/auth/mfa/totp", {}, {}),
        ("POST", "/v1/auth/email/change", CHANGE, {}),
    ],
    "passwords": [
        ("POST", "/v1/auth/password/change", {"current_password": PASSWORD, "new_password": "my own horse 26"}, {}),
        ("DELETE", "/v1/users/me", {"current_password": PASSWORD}, {}),
        ("POST", "/v1/auth/login", {"email": "owner@example.com", "password": PASSWORD}, {}),
    ],
}


@LOCAL
@pytest.mark.parametrize("kind", IN_FLIGHT)
async def test_requests_in_flight_at_a_reset_make_nothing(
    kind: str,
    client: httpx.AsyncClient,
    make_person: MakePerson,
    mailbox: Mailbox,
    connection: Connection,
    blockade: Blockade,
) -> None:
    thief = await make_person(email="owner@example.com")
    body = await reset_body(client, mailbox, thief.email)
    (await thief.get("/v1/users/me")).raise_for_status()
    await settled(connection)
    await blockade.begin()
    reset = asyncio.create_task(client.post("/v1/auth/password/reset", json=body))
    await blockade.is_reached_by(1)
    tasks = [
        asyncio.create_task(thief.request(method, url, json=json or None, headers=headers))
        for method, url, json, headers in IN_FLIGHT[kind]
    ]
    await blockade.is_reached_by(1 + len(tasks))
    await blockade.end()
    assert (await reset).status_code == 204
    answers = await asyncio.gather(*tasks)
    assert [answer.status_code for answer in answers] == [401] * len(tasks), [answer.text for answer in answers]
    await settled(connection)
    assert await snapshot(connection, thief) == {
        "email": "owner@example.com",
        "sessions": 0,
        "keys": 0,
        "factors": 0,
        "codes": 0,
        "links": 0,
        "endpoints": 0,
    }
    assert mailbox.letters(THIEF) == []


@LOCAL
async def test_requests_in_flight_with_a_second_factor_change_nothing_of_the_new_one(
    clock: ManualClock,
    client: httpx.AsyncClient,
    make_person: MakePerson,
    connection: Connection,
    blockade: Blockade,
) -> None:
    person = await make_person()
    secret = (await person.post("/v1/auth/mfa/totp")).json()["secret"]
    code = pyotp.TOTP(secret).at(int(clock.timestamp()))
    assert (await person.post("/v1/auth/mfa/totp/activate", json={"code": code})).status_code == 200
    before = await connection.fetch("SELECT code_hash FROM identity.recovery_codes ORDER BY code_hash")
    current = {"current_password": PASSWORD}
    await blockade.begin()
    # Whatever comes first ends the session of the others.
    first = asyncio.create_task(
        person.post("/v1/auth/password/change", json={"current_password": PASSWORD, "new_password": NEW})
    )
    await blockade.is_reached_by(1)
    tasks = [
        asyncio.create_task(person.delete("/v1/auth/mfa/totp", json=current)),
        asyncio.create_task(person.post("/v1/auth/mfa/recovery-codes", json=current)),
    ]
    await blockade.is_reached_by(3)
    await blockade.end()
    assert (await first).status_code == 200
    for answer in await asyncio.gather(*tasks):
        problem_of(answer, 401, "token_revoked")
    assert await connection.fetch("SELECT code_hash FROM identity.recovery_codes ORDER BY code_hash") == before
    assert await connection.fetchval("SELECT totp_enabled FROM identity.accounts WHERE user_id = $1", person.id)


@pytest.mark.parametrize("end", ["reset", "change"])
async def test_a_waiting_mail_of_a_change_of_address_dies_with_the_password(
    end: str,
    client: httpx.AsyncClient,
    make_person: MakePerson,
    mailbox: Mailbox,
    worker: Worker,
    connection: Connection,
    log_in: LogIn,
) -> None:
    thief = await proven(client, mailbox, log_in, await make_person(email="owner@example.com"))
    body = await reset_body(client, mailbox, thief.email)
    await settled(connection)
    await pause_queue(worker.db, worker.queue, SystemClock(), operator("test"), "critical", paused=True)
    assert (await thief.post("/v1/auth/email/change", json=CHANGE)).status_code == 202
    if end == "reset":
        assert (await client.post("/v1/auth/password/reset", json=body)).status_code == 204
    else:
        changed = {"current_password": PASSWORD, "new_password": NEW}
        assert (await thief.post("/v1/auth/password/change", json=changed)).status_code == 200
    await pause_queue(worker.db, worker.queue, SystemClock(), operator("test"), "critical", paused=False)
    await settled(connection)
    assert mailbox.letters(THIEF) == []
    assert (await snapshot(connection, thief))["links"] == 0
    warning = await mailbox.letter(thief.email, "A change of your e-mail address was asked for")
    assert "another e-mail address" in warning.text


async def test_a_link_for_a_new_address_dies_with_the_reset_and_with_another_change(
    client: httpx.AsyncClient, make_person: MakePerson, mailbox: Mailbox, connection: Connection, log_in: LogIn
) -> None:
    owner = await proven(client, mailbox, log_in, await make_person(email="owner@example.com"))
    body = await reset_body(client, mailbox, owner.email)
    assert (await owner.post("/v1/auth/email/change", json=CHANGE)).status_code == 202
    token = (await mailbox.letter(THIEF, "Confirm your new e-mail address")).token
    # As if it had been stored a moment later than the reset deleted all of them.
    row = await connection.fetchrow("SELECT * FROM identity.one_time_tokens WHERE purpose = 'change_email'")
    assert (await client.post("/v1/auth/password/reset", json=body)).status_code == 204
    await connection.execute("INSERT INTO identity.one_time_tokens SELECT ($1::identity.one_time_tokens).*", row)
    problem_of(await client.post("/v1/auth/email/confirm", json={"token": token}), 400, "invalid_token")
    assert (await snapshot(connection, owner))["email"] == "owner@example.com"


async def test_of_two_links_for_one_account_in_parallel_one_counts(
    client: httpx.AsyncClient, make_person: MakePerson, mailbox: Mailbox, log_in: LogIn, blockade: Blockade
) -> None:
    owner = await proven(client, mailbox, log_in, await make_person(email="owner@example.com"))
    body = await reset_body(client, mailbox, owner.email)
    assert (await owner.post("/v1/auth/email/change", json=CHANGE)).status_code == 202
    token = (await mailbox.letter(THIEF, "Confirm your new e-mail address")).token
    await blockade.begin()
    reset = asyncio.create_task(client.post("/v1/auth/password/reset", json=body))
    await blockade.is_reached_by(1)
    confirm = asyncio.create_task(client.post("/v1/auth/email/confirm", json={"token": token}))
    await blockade.is_reached_by(2)
    await blockade.end()
    assert (await reset).status_code == 204
    problem_of(await confirm, 400, "invalid_token")


async def test_a_link_that_a_worker_is_about_to_store_dies_with_the_change_of_the_account(
    client: httpx.AsyncClient,
    make_person: MakePerson,
    mailbox: Mailbox,
    log_in: LogIn,
    connection: Connection,
    blockade: Blockade,
) -> None:
    owner = await proven(client, mailbox, log_in, await make_person(email="owner@example.com"))
    await settled(connection)
    await blockade.begin()
    change = {"current_password": PASSWORD, "new_password": NEW}
    changing = asyncio.create_task(owner.post("/v1/auth/password/change", json=change))
    await blockade.is_reached_by(1)
    assert (await client.post("/v1/auth/password/forgot", json={"email": owner.email})).status_code == 202
    await blockade.is_reached_by(2)
    await blockade.end()
    assert (await changing).status_code == 200
    await settled(connection)
    assert (await snapshot(connection, owner))["links"] == 0
    subjects = Counter(letter.subject for letter in mailbox.letters(owner.email))
    assert subjects["Set a new password"] == 0


async def test_an_administrator_who_is_deposed_meanwhile_changes_nothing(
    admin: Person,
    make_person: MakePerson,
    log_in: LogIn,
    connection: Connection,
    identity: IdentityServices,
    blockade: Blockade,
) -> None:
    other, friend, target = [await make_person() for _ in range(3)]
    assert (await admin.patch(f"/v1/admin/users/{other.id}", json={"role": "admin"})).status_code == 200
    other = await log_in(other)
    (await other.get("/v1/admin/users")).raise_for_status()
    await blockade.begin()
    first = asyncio.create_task(admin.patch(f"/v1/admin/users/{other.id}", json={"role": "user"}))
    await blockade.is_reached_by(1)
    tasks = [
        asyncio.create_task(other.patch(f"/v1/admin/users/{friend.id}", json={"role": "admin"})),
        asyncio.create_task(other.post(f"/v1/admin/users/{target.id}/ban")),
    ]
    await blockade.is_reached_by(3)
    await blockade.end()
    assert (await first).status_code == 200
    for answer in await asyncio.gather(*tasks):
        problem_of(answer, 403, "role_required")
    rows = await connection.fetch("SELECT user_id FROM identity.accounts WHERE role = 'admin' OR status = 'banned'")
    assert [row["user_id"] for row in rows] == [admin.id]
