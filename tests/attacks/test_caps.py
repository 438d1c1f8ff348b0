"""Whatever is counted stays within its number, however many requests come at the same moment."""

import asyncio
from collections import Counter

import httpx
import pytest

from app.identity.service import callers
from app.jobs.records.webhooks import MAX_ENDPOINTS
from tests.attacks.blockade import Blockade
from tests.fixtures.answers import problem_of
from tests.fixtures.clocks import ManualClock
from tests.fixtures.people import PASSWORD, Person
from tests.fixtures.servers import Connection
from tests.identity.test_second_factor import Phone, begin, enrol, finish
from tests.jobs.receiver import LOCAL

# As in production: each request that waits for a lock has a connection.
pytestmark = pytest.mark.settings(APP_DATABASE_POOL_SIZE="10")

AT_ONCE = 24


async def behind(blockade: Blockade, calls: list[asyncio.Task[httpx.Response]]) -> list[httpx.Response]:
    """The answers to requests that wait for one account, as many as there are connections, and then go on together."""
    await blockade.is_reached_by(min(len(calls), 5))
    await blockade.end()
    return list(await asyncio.gather(*calls))


@pytest.mark.settings(APP_IDENTITY_MAX_API_KEYS="5")
async def test_api_keys(person: Person, connection: Connection, blockade: Blockade) -> None:
    body = {"name": "k", "scopes": ["profile:read"]}
    await blockade.begin()
    calls = [asyncio.create_task(person.post("/v1/auth/api-keys", json=body)) for _ in range(AT_ONCE)]
    answers = await behind(blockade, calls)
    assert Counter(answer.status_code for answer in answers) == {201: 5, 409: AT_ONCE - 5}
    assert await connection.fetchval("SELECT count(*) FROM identity.api_keys WHERE revoked_at IS NULL") == 5


@LOCAL
async def test_webhook_endpoints(person: Person, connection: Connection, blockade: Blockade) -> None:
    body = {"url": "http://127.0.0.1:9/", "event_types": ["invoice.issued"]}
    await blockade.begin()
    calls = [asyncio.create_task(person.post("/v1/webhooks/endpoints", json=body)) for _ in range(AT_ONCE)]
    answers = await behind(blockade, calls)
    assert Counter(answer.status_code for answer in answers) == {201: MAX_ENDPOINTS, 409: AT_ONCE - MAX_ENDPOINTS}
    assert await connection.fetchval("SELECT count(*) FROM jobs.webhook_endpoints") == MAX_ENDPOINTS


@pytest.mark.settings(APP_IDENTITY_MAX_SESSIONS="2")
async def test_sessions(client: httpx.AsyncClient, person: Person, connection: Connection, blockade: Blockade) -> None:
    body = {"email": person.email, "password": PASSWORD}
    await blockade.begin()
    calls = [asyncio.create_task(client.post("/v1/auth/login", json=body)) for _ in range(5)]  # More are braked.
    answers = await behind(blockade, calls)
    assert Counter(answer.status_code for answer in answers) == {200: 5}
    assert await connection.fetchval("SELECT count(*) FROM identity.sessions WHERE revoked_at IS NULL") == 2
    tokens = [answer.json()["tokens"]["access_token"] for answer in answers]
    reads = [await client.get("/v1/users/me", headers={"Authorization": f"Bearer {token}"}) for token in tokens]
    assert Counter(read.status_code for read in reads) == {200: 2, 401: 3}


async def test_recovery_codes(clock: ManualClock, person: Person, connection: Connection, blockade: Blockade) -> None:
    await enrol(person, clock)
    await blockade.begin()
    body = {"current_password": PASSWORD}
    calls = [asyncio.create_task(person.post("/v1/auth/mfa/recovery-codes", json=body)) for _ in range(4)]
    answers = await behind(blockade, calls)
    assert Counter(answer.status_code for answer in answers) == {200: 4}
    assert await connection.fetchval("SELECT count(*) FROM identity.recovery_codes") == 10


async def test_half_a_log_in_opens_one_session(
    clock: ManualClock, client: httpx.AsyncClient, person: Person, connection: Connection
) -> None:
    phone, codes = await enrol(person, clock)
    mfa_token = await begin(client, person)
    client.cookies.clear()
    sessions = await connection.fetchval("SELECT count(*) FROM identity.sessions")
    answers = await asyncio.gather(*(finish(client, mfa_token, code) for code in (phone.code(), *codes[:3])))
    assert Counter(answer.status_code for answer in answers) == {200: 1, 401: 3}
    client.cookies.clear()
    clock.advance(30)
    late = await finish(client, mfa_token, phone.code())
    assert (late.status_code, late.json()["code"]) == (401, "invalid_mfa_token")
    assert await connection.fetchval("SELECT count(*) FROM identity.sessions") == sessions + 1
    # A code that opened nothing is not spent.
    spent = await connection.fetchval("SELECT count(*) FROM identity.recovery_codes WHERE used_at IS NOT NULL")
    opened_by = await connection.fetchval("SELECT methods[2] FROM identity.sessions ORDER BY id DESC LIMIT 1")
    assert spent == (1 if opened_by == "recovery" else 0)


async def test_a_second_seed_made_meanwhile_is_not_confirmed_by_a_code_of_the_first(
    clock: ManualClock, person: Person, connection: Connection, blockade: Blockade
) -> None:
    first = (await person.post("/v1/auth/mfa/totp")).json()["secret"]
    await blockade.begin()
    second = asyncio.create_task(person.post("/v1/auth/mfa/totp"))
    await blockade.is_reached_by(1)
    code = {"code": Phone(first, clock).code()}
    activated = asyncio.create_task(person.post("/v1/auth/mfa/totp/activate", json=code))
    await blockade.is_reached_by(2)
    await blockade.end()
    assert (await second).status_code == 201
    assert (await activated).status_code == 409
    assert await connection.fetchval("SELECT count(*) FROM identity.totp_factors WHERE confirmed_at IS NULL") == 1


async def test_an_audit_trail_grows_by_so_many_entries_an_hour(
    person: Person, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callers, "MOST_ENTRIES_AN_HOUR", 6)
    body = {"name": "k", "scopes": ["profile:read"]}
    keys = []
    while (answer := await person.post("/v1/auth/api-keys", json=body)).status_code == 201:
        keys.append(answer.json()["id"])
        assert len(keys) < 7
    problem_of(answer, 429, "too_many_attempts")
    assert answer.headers["retry-after"] == "600"
    trail = "SELECT count(*) FROM identity.security_events WHERE user_id = $1"
    assert await connection.fetchval(trail, person.id) == 6
    endpoint = {"url": "https://93.184.216.34/x", "event_types": ["*"]}
    for path, made in (
        ("/v1/webhooks/endpoints", endpoint),
        ("/v1/auth/mfa/totp", {}),
        ("/v1/jobs", {"kind": "export.account", "args": {}}),
    ):
        problem_of(await person.post(path, json=made), 429, "too_many_attempts")
    assert await connection.fetchval(trail, person.id) == 6
    # What ends credentials works all the same, and other jobs do.
    assert (await person.delete(f"/v1/auth/api-keys/{keys[0]}")).status_code == 204
    export = {"kind": "export.events", "args": {"format": "csv"}}
    assert (await person.post("/v1/jobs", json=export)).status_code == 202
    change = {"current_password": PASSWORD, "new_password": "a new horse 2026"}
    assert (await person.post("/v1/auth/password/change", json=change)).status_code == 200
    await connection.execute("DELETE FROM identity.security_events")
