"""Log-in: what it answers, what it costs, and what happens when much of it comes at once."""

import asyncio
import os
import threading
from collections import Counter
from datetime import timedelta
from typing import Any

import asyncpg
import httpx
import pytest
from argon2 import PasswordHasher
from fastapi import FastAPI
from redis.asyncio import Redis

from app.dev.embedded import EmbeddedValkey
from app.identity.api import IdentityServices
from app.identity.queries.security_events import INSERT_FAILED_LOGIN
from app.identity.schemas.sessions import SignedInResponse
from app.identity.service.cleanup import clean
from app.kernel.resources import Resources
from tests.fixtures.answers import body_of, problem_of
from tests.fixtures.application import Budget, stored
from tests.fixtures.clocks import ManualClock
from tests.fixtures.people import PASSWORD, MakePerson, Person
from tests.fixtures.servers import Connection
from tests.fixtures.waiting import in_time
from tests.identity.conftest import LogIn

pytestmark = pytest.mark.smoke


def without_request_id(answer: httpx.Response) -> tuple[int, object, list[tuple[str, str]]]:
    body = answer.json()
    for name in ("request_id", "instance"):
        body.pop(name, None)
    # What is left of the network's quota is as much less after each request.
    headers = [(name, value) for name, value in answer.headers.items() if name not in {"x-request-id", "ratelimit"}]
    return answer.status_code, body, headers


async def test_login_answers_user_and_tokens(client: httpx.AsyncClient, person: Person) -> None:
    answer = await client.post(
        "/v1/auth/login", json={"email": f" {person.email.upper()} ", "password": PASSWORD, "device_name": "phone"}
    )
    body = body_of(answer, SignedInResponse)
    assert body["user"] == (await person.get("/v1/users/me")).json()
    assert body["tokens"]["expires_in"] == 600
    assert body["tokens"]["token_type"] == "Bearer"
    assert body["tokens"]["refresh_token"].startswith("rt_")
    assert answer.headers["cache-control"] == "no-store"
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith("onehop_device=")
    assert cookie.endswith("; HttpOnly; Max-Age=31536000; Path=/v1/auth; SameSite=lax")
    sessions = (await person.get("/v1/auth/sessions")).json()["items"]
    assert [(item["device_name"], item["current"]) for item in sessions] == [("phone", False), (None, True)]


@pytest.mark.settings(APP_PUBLIC_URL="https://api.example.com")
async def test_the_device_cookie_is_secure_where_the_service_is(client: httpx.AsyncClient, person: Person) -> None:
    answer = await client.post("/v1/auth/login", json={"email": person.email, "password": PASSWORD})
    assert "; Secure" in answer.headers["set-cookie"]


async def test_login_costs_three_statements_and_an_authenticated_request_nothing(
    client: httpx.AsyncClient,
    person: Person,
    budget: Budget,
    identity: IdentityServices,
    app: FastAPI,
    resources: Resources,
) -> None:
    with budget(3) as seen:
        answer = await client.post("/v1/auth/login", json={"email": person.email, "password": PASSWORD})
    assert answer.status_code == 200
    assert [statement.label for statement in seen] == ["identity.login", "identity.login_user", "identity.open_session"]
    headers = {"Authorization": f"Bearer {answer.json()['tokens']['access_token']}"}
    await client.get("/v1/users/me", headers=headers)
    await stored(app)
    calls = resources.redis.calls
    with budget(0):
        answers = [await client.get("/v1/users/me", headers=headers) for _ in range(50)]
    assert {answer.status_code for answer in answers} == {200}
    assert resources.redis.calls == calls


async def test_the_cost_of_a_login_as_postgres_counts_it(
    client: httpx.AsyncClient, person: Person, connection: Connection
) -> None:
    await connection.execute("CREATE EXTENSION pg_stat_statements")
    await connection.execute("SELECT pg_stat_statements_reset()")
    await client.post("/v1/auth/login", json={"email": person.email, "password": PASSWORD})
    # The process polls for revocations and keys meanwhile.
    calls = await connection.fetch("""
        SELECT query, calls FROM pg_stat_statements
         WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
           AND query ~ 'identity|users' AND query !~ 'revocations AS revocation|pg_stat|signing_keys'
    """)
    assert sum(row["calls"] for row in calls) == 3, calls


async def test_an_unknown_address_is_answered_like_a_wrong_password(client: httpx.AsyncClient, person: Person) -> None:
    wrong = await client.post("/v1/auth/login", json={"email": person.email, "password": "not it at all"})
    unknown = await client.post("/v1/auth/login", json={"email": "unknown@example.com", "password": "not it at all"})
    problem_of(wrong, 401, "invalid_credentials")
    assert wrong.headers["www-authenticate"] == "Bearer"
    assert without_request_id(unknown) == without_request_id(wrong)


async def test_both_kinds_of_failure_hash_once_and_are_noted_without_waiting_for_the_disk(
    client: httpx.AsyncClient, person: Person, identity: IdentityServices, connection: Connection
) -> None:
    for email in (person.email, "unknown@example.com"):
        before = identity.hashing.count
        await client.post("/v1/auth/login", json={"email": email, "password": "not it at all"})
        assert identity.hashing.count == before + 1
    rows = await connection.fetch("SELECT user_id FROM identity.security_events WHERE action = 'login_failed'")
    assert [row["user_id"] for row in rows] == [person.id]
    assert "set_config('synchronous_commit', 'off', true)" in INSERT_FAILED_LOGIN


async def test_a_ban_is_told_only_to_who_knows_the_password(
    client: httpx.AsyncClient, person: Person, connection: Connection
) -> None:
    await connection.execute("UPDATE identity.accounts SET status = 'banned' WHERE user_id = $1", person.id)
    wrong = await client.post("/v1/auth/login", json={"email": person.email, "password": "not it at all"})
    problem_of(wrong, 401, "invalid_credentials")
    right = await client.post("/v1/auth/login", json={"email": person.email, "password": PASSWORD})
    problem_of(right, 403, "account_banned")
    assert await connection.fetchval("SELECT count(*) FROM identity.sessions WHERE user_id = $1", person.id) == 1


async def test_parallel_wrong_logins_hardly_reach_the_hash(
    client: httpx.AsyncClient, person: Person, identity: IdentityServices
) -> None:
    before = identity.hashing.count
    body = {"email": person.email, "password": "not it at all"}
    answers = await asyncio.gather(*(client.post("/v1/auth/login", json=body) for _ in range(30)))
    assert Counter(answer.status_code for answer in answers) == {401: 5, 429: 25}
    assert identity.hashing.count - before == 5
    # The right password does no better, so the answer tells nothing of it.
    refused = await client.post("/v1/auth/login", json={"email": person.email, "password": PASSWORD})
    problem_of(refused, 429, "too_many_attempts")
    assert refused.headers["retry-after"] == "1"


async def end_pauses(resources: Resources) -> None:
    """As if the time had gone by that everybody has to wait."""

    async def end(client: Redis) -> None:
        for key in await client.keys("identity:attempts:*"):
            await client.hdel(key, "until")  # type: ignore[misc]  # redis-py types it for both of its clients

    await resources.redis.call(end)


async def test_pauses_double_and_end_with_a_success(
    client: httpx.AsyncClient, person: Person, resources: Resources
) -> None:
    wrong = {"email": person.email, "password": "not it at all"}
    for _ in range(5):
        problem_of(await client.post("/v1/auth/login", json=wrong), 401, "invalid_credentials")
    redis = resources.redis.client
    (pair,) = await redis.keys("identity:attempts:pair:*")
    pauses = []
    for _ in range(12):
        pauses.append(int((await client.post("/v1/auth/login", json=wrong)).headers["retry-after"]))
        await end_pauses(resources)
        await client.post("/v1/auth/login", json=wrong)
    assert pauses == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900]
    await end_pauses(resources)
    assert (await client.post("/v1/auth/login", json=wrong | {"password": PASSWORD})).status_code == 200
    assert not await redis.exists(pair)


async def test_the_owner_s_device_is_not_locked_out(client: httpx.AsyncClient, person: Person) -> None:
    right = {"email": person.email, "password": PASSWORD}
    assert (await client.post("/v1/auth/login", json=right)).status_code == 200
    cookie = {"onehop_device": client.cookies["onehop_device"]}
    client.cookies.clear()
    strangers = [await client.post("/v1/auth/login", json=right | {"password": "not it at all"}) for _ in range(6)]
    problem_of(strangers[-1], 429, "too_many_attempts")
    problem_of(await client.post("/v1/auth/login", json=right), 429, "too_many_attempts")
    client.cookies.update(cookie)
    assert (await client.post("/v1/auth/login", json=right)).status_code == 200


async def test_a_device_cookie_counts_for_its_own_address_only_and_is_braked_itself(
    client: httpx.AsyncClient, make_person: MakePerson, identity: IdentityServices
) -> None:
    mallory, victim = await make_person(), await make_person()
    await client.post("/v1/auth/login", json={"email": mallory.email, "password": PASSWORD})
    wrong = {"email": victim.email, "password": "not it at all"}
    answers = [await client.post("/v1/auth/login", json=wrong) for _ in range(7)]
    assert [answer.status_code for answer in answers] == [401] * 5 + [429] * 2
    before = identity.hashing.count
    own = [await client.post("/v1/auth/login", json=wrong | {"email": mallory.email}) for _ in range(7)]
    assert [answer.status_code for answer in own] == [401] * 5 + [429] * 2
    assert identity.hashing.count - before == 5


@pytest.mark.parametrize("cookie", ["", "x", "é", "A" * 43, "A" * 4000])
async def test_a_forged_device_cookie_is_none(client: httpx.AsyncClient, person: Person, cookie: str) -> None:
    header = (b"cookie", b"onehop_device=" + cookie.encode("latin-1"))
    body = {"email": person.email, "password": "not it at all"}
    answers = [await client.post("/v1/auth/login", json=body, headers=[header]) for _ in range(6)]
    assert [answer.status_code for answer in answers] == [401] * 5 + [429]


async def test_the_brake_works_without_redis(
    client: httpx.AsyncClient, person: Person, valkey: EmbeddedValkey, identity: IdentityServices
) -> None:
    await asyncio.to_thread(valkey.stop)
    try:
        before = identity.hashing.count
        body = {"email": person.email, "password": "not it at all"}
        answers = [await client.post("/v1/auth/login", json=body) for _ in range(8)]
        assert [answer.status_code for answer in answers] == [401] * 5 + [429] * 3
        assert answers[-1].headers["retry-after"] == "1"
        assert identity.hashing.count - before == 5
    finally:
        await asyncio.to_thread(valkey.start)


@pytest.mark.settings(APP_IDENTITY_NETWORK_FAILURES="7")
async def test_an_address_has_a_quota_that_successes_do_not_use_up_and_is_slowed_beyond_it(
    client: httpx.AsyncClient, person: Person, log_in: LogIn
) -> None:
    body = {"password": "not it at all"}
    for number in range(6):
        body["email"] = f"unknown{number}@example.com"
        problem_of(await client.post("/v1/auth/login", json=body), 401, "invalid_credentials")
    for _ in range(3):
        await log_in(person)
    problem_of(await client.post("/v1/auth/login", json=body), 401, "invalid_credentials")
    refused = await client.post("/v1/auth/login", json={"email": person.email, "password": PASSWORD})
    problem_of(refused, 429, "too_many_attempts")
    assert 1 <= int(refused.headers["retry-after"]) <= 60


@pytest.mark.settings(APP_IDENTITY_HASH_MEMORY_KIB="19456", APP_IDENTITY_HASH_ITERATIONS="2")
async def test_an_old_hash_is_replaced_at_login(
    client: httpx.AsyncClient, person: Person, log_in: LogIn, connection: Connection
) -> None:
    weak = PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1).hash(PASSWORD)
    await connection.execute("UPDATE identity.accounts SET password_hash = $1", weak)
    await log_in(person)
    stored = await connection.fetchval("SELECT password_hash FROM identity.accounts")
    assert stored.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    await log_in(person)
    assert await connection.fetchval("SELECT password_hash FROM identity.accounts") == stored


@pytest.mark.settings(APP_IDENTITY_MAX_SESSIONS="3")
async def test_the_longest_unused_session_gives_way(
    clock: ManualClock, client: httpx.AsyncClient, person: Person, log_in: LogIn
) -> None:
    people = [person]
    for _ in range(2):
        clock.advance(1)
        people.append(await log_in(person))
    clock.advance(1)
    refreshed = await client.post("/v1/auth/refresh", json={"refresh_token": people[0].tokens["refresh_token"]})
    assert refreshed.status_code == 200
    clock.advance(1)
    people.append(await log_in(person))
    answers = [await each.get("/v1/auth/sessions") for each in people]
    assert [answer.status_code for answer in answers] == [200, 401, 200, 200]
    assert len(answers[0].json()["items"]) == 3
    listed = [item["id"] for item in answers[0].json()["items"]]
    cursor = (await people[0].get("/v1/auth/sessions?limit=1")).json()["next_cursor"]
    rest = (await people[0].get("/v1/auth/sessions", params={"cursor": cursor})).json()
    assert ([item["id"] for item in rest["items"]], rest["next_cursor"]) == (listed[1:], None)


@pytest.mark.settings(APP_IDENTITY_MAX_SESSIONS="1000")
async def test_as_many_sessions_are_listed_as_there_may_be(person: Person, connection: Connection) -> None:
    await connection.execute(
        """
        INSERT INTO identity.sessions (user_id, id, rotated_at, created_at, authenticated_at, last_used_at,
                                       idle_expires_at, expires_at, methods)
        SELECT user_id, md5(n::text)::uuid, rotated_at, created_at, authenticated_at, last_used_at, idle_expires_at,
               expires_at, methods
        FROM identity.sessions, generate_series(1, 230) AS n
        """
    )
    found: list[str] = []
    page: dict[str, Any] = {"next_cursor": ""}
    while page["next_cursor"] is not None:
        query = {"limit": 100} | ({"cursor": page["next_cursor"]} if page["next_cursor"] else {})
        page = (await person.get("/v1/auth/sessions", params=query)).json()
        found += [item["id"] for item in page["items"]]
    assert len(set(found)) == len(found) == 231


async def test_a_session_lists_when_it_ends(
    clock: ManualClock, client: httpx.AsyncClient, person: Person, log_in: LogIn
) -> None:
    (item,) = (await person.get("/v1/auth/sessions")).json()["items"]
    assert item["expires_at"] == (clock.now() + timedelta(days=14)).isoformat().replace("+00:00", "Z")
    clock.advance(14 * 86_400)
    problem_of(await person.get("/v1/auth/sessions"), 401, "token_expired")
    answer = await client.post("/v1/auth/refresh", json={"refresh_token": person.tokens["refresh_token"]})
    problem_of(answer, 401, "invalid_refresh_token")


async def test_sessions_that_ended_long_ago_are_deleted(
    clock: ManualClock, client: httpx.AsyncClient, person: Person, log_in: LogIn, resources: Resources
) -> None:
    clock.advance(60 * 86_400)
    newer = await log_in(person)
    clock.advance(60 * 86_400)
    # At this moment the first one has lived for 90 days and been remembered for 30; the second has not.
    assert await clean(resources.db, clock, resources.incarnation, audit_days=400) == 0
    clock.advance(1)
    assert await clean(resources.db, clock, resources.incarnation, audit_days=400) == 1
    clock.advance(-59 * 86_400)
    assert (await newer.get("/v1/auth/sessions")).status_code == 401
    refreshed = await client.post("/v1/auth/refresh", json={"refresh_token": newer.tokens["refresh_token"]})
    assert refreshed.status_code == 200


async def test_a_login_that_began_before_a_password_change_opens_nothing_after_it(
    client: httpx.AsyncClient, person: Person, connection: Connection, database_url: str
) -> None:
    """The log-in has read the account and hashes; meanwhile the password is changed."""
    blocker = connection.transaction()
    await blocker.start()
    # Stands in the way of the log-in's last statement as the change's own transaction does.
    await connection.execute("UPDATE identity.accounts SET version = version + 1 WHERE user_id = $1", person.id)
    login = asyncio.create_task(client.post("/v1/auth/login", json={"email": person.email, "password": PASSWORD}))
    await waits_for_a_lock(database_url)
    await blocker.commit()
    problem_of(await login, 401, "invalid_credentials")
    assert await connection.fetchval("SELECT count(*) FROM identity.sessions") == 1


async def waits_for_a_lock(database_url: str) -> None:
    """Returns once a session waits for a lock in this database."""
    observer = await asyncpg.connect(database_url)
    try:
        async with in_time():
            while not await observer.fetchval(  # noqa: ASYNC110
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
            ):
                await asyncio.sleep(0.01)
    finally:
        await observer.close()


async def test_addresses_that_differ_only_in_how_letters_are_composed_are_one(
    client: httpx.AsyncClient, make_person: MakePerson
) -> None:
    await make_person(email="zo\u00eb@example.com")
    answer = await client.post("/v1/auth/login", json={"email": "ZOE\u0308@example.com", "password": PASSWORD})
    assert answer.status_code == 200


async def test_a_password_typed_in_another_form_is_the_same(client: httpx.AsyncClient, make_person: MakePerson) -> None:
    person = await make_person(password="caf\u00e9 au lait 77")
    body = {"email": person.email, "password": "cafe\u0301 au lait 77"}
    assert (await client.post("/v1/auth/login", json=body)).status_code == 200


async def test_nothing_is_cut_off_a_password(client: httpx.AsyncClient, make_person: MakePerson) -> None:
    person = await make_person(password="long " * 25 + "end")
    for password, status in ((person.password, 200), (person.password + "x", 401), (person.password[:72], 401)):
        answer = await client.post("/v1/auth/login", json={"email": person.email, "password": password})
        assert answer.status_code == status


# A hash that takes its time, so that the others come while it runs.
@pytest.mark.settings(
    APP_IDENTITY_HASH_THREADS="1",
    APP_IDENTITY_HASH_QUEUE="0",
    APP_IDENTITY_HASH_MEMORY_KIB="8192",
    APP_IDENTITY_HASH_ITERATIONS="10",
)
async def test_who_was_turned_away_for_lack_of_room_has_not_failed(
    identity: IdentityServices, client: httpx.AsyncClient, person: Person
) -> None:
    right = {"email": person.email, "password": person.password}
    turned_away = 0
    for _ in range(3):
        answers = await asyncio.gather(*(client.post("/v1/auth/login", json=right) for _ in range(4)))
        assert {answer.status_code for answer in answers} <= {200, 503}
        turned_away += sum(answer.status_code == 503 for answer in answers)
    assert turned_away >= 5
    assert (await client.post("/v1/auth/login", json=right)).status_code == 200


async def test_hashing_threads_stand_back_behind_the_event_loop(client: httpx.AsyncClient, person: Person) -> None:
    """Where both want the same core; and there are as many as this process has cores."""
    body = {"email": person.email, "password": person.password}
    assert (await client.post("/v1/auth/login", json=body)).status_code == 200
    own = os.getpriority(os.PRIO_PROCESS, os.getpid())
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("password-hash")]
    assert 1 <= len(threads) <= len(os.sched_getaffinity(0))
    assert {os.getpriority(os.PRIO_PROCESS, thread.native_id or 0) for thread in threads} == {min(own + 5, 19)}
