"""Refresh tokens: each is good once; a parallel request is no thief, and a thief is no parallel request."""

import asyncio
import json

import httpx
import pytest

from app.dev.embedded import EmbeddedValkey
from tests.fixtures.answers import problem_of
from tests.fixtures.application import Budget
from tests.fixtures.clocks import ManualClock
from tests.fixtures.people import MakePerson, Person
from tests.fixtures.servers import Connection
from tests.fixtures.sizes import sized
from tests.identity.conftest import LogIn, Mailbox

ROUNDS = sized(4)
PARALLEL = 30
REPLAYS = sized(5)


async def refresh(client: httpx.AsyncClient, token: object, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await client.post("/v1/auth/refresh", json={"refresh_token": token}, headers=named)


async def test_parallel_refreshes_get_one_and_the_same_successor(
    client: httpx.AsyncClient, person: Person, connection: Connection
) -> None:
    token = person.tokens["refresh_token"]
    for number in range(1, ROUNDS + 1):
        answers = await asyncio.gather(*(refresh(client, token) for _ in range(PARALLEL)))
        assert {answer.status_code for answer in answers} == {200}
        (successor,) = {answer.content for answer in answers}
        assert await connection.fetchval("SELECT generation FROM identity.sessions") == number
        token = json.loads(successor)["refresh_token"]


async def test_every_replay_ends_the_session(
    client: httpx.AsyncClient, person: Person, log_in: LogIn, connection: Connection
) -> None:
    for _ in range(REPLAYS):
        again = await log_in(person)
        first = await refresh(client, again.tokens["refresh_token"])
        assert first.status_code == 200
        problem_of(await refresh(client, again.tokens["refresh_token"]), 401, "invalid_refresh_token")
        problem_of(await refresh(client, first.json()["refresh_token"]), 401, "invalid_refresh_token")
        for access_token in (again.tokens["access_token"], first.json()["access_token"]):
            answer = await client.get("/v1/users/me", headers={"Authorization": f"Bearer {access_token}"})
            problem_of(answer, 401, "token_revoked")
    # No other session is hurt.
    assert (await person.get("/v1/users/me")).status_code == 200
    rows = await connection.fetch("SELECT revoke_reason, count(*) FROM identity.sessions GROUP BY 1 ORDER BY 1")
    assert [tuple(row) for row in rows] == [("refresh_token_reused", REPLAYS), (None, 1)]
    noted = "SELECT count(*) FROM identity.security_events WHERE action = 'refresh_token_reused' AND actor_id IS NULL"
    assert await connection.fetchval(noted) == REPLAYS


async def test_an_older_generation_is_a_replay(client: httpx.AsyncClient, person: Person) -> None:
    tokens = [person.tokens["refresh_token"]]
    for _ in range(3):
        tokens.append((await refresh(client, tokens[-1], Idempotency_Key="same")).json()["refresh_token"])
    problem_of(await refresh(client, tokens[1], Idempotency_Key="same"), 401, "invalid_refresh_token")
    problem_of(await refresh(client, tokens[3]), 401, "invalid_refresh_token")


async def test_a_lost_answer_is_repeated_to_who_has_the_key(
    clock: ManualClock, client: httpx.AsyncClient, person: Person, log_in: LogIn
) -> None:
    token = person.tokens["refresh_token"]
    first = await refresh(client, token, Idempotency_Key="k1")
    clock.advance(59)
    again = await refresh(client, token, Idempotency_Key="k1")
    assert (again.status_code, again.content) == (200, first.content)
    problem_of(await refresh(client, token, Idempotency_Key="k2"), 401, "invalid_refresh_token")
    problem_of(await refresh(client, first.json()["refresh_token"]), 401, "invalid_refresh_token")

    late = await log_in(person)
    await refresh(client, late.tokens["refresh_token"], Idempotency_Key="k1")
    clock.advance(61)
    answer = await refresh(client, late.tokens["refresh_token"], Idempotency_Key="k1")
    problem_of(answer, 401, "invalid_refresh_token")


async def test_a_refresh_costs_one_statement(client: httpx.AsyncClient, person: Person, budget: Budget) -> None:
    with budget(1):
        assert (await refresh(client, person.tokens["refresh_token"])).status_code == 200


async def test_a_foreign_token_costs_no_statement(client: httpx.AsyncClient, person: Person, budget: Budget) -> None:
    token = str(person.tokens["refresh_token"])
    with budget(0):
        for wrong in ("x", "rt_", token[:-1], token + "A", person.tokens["access_token"], "rt_" + "A" * 91, "ré"):
            problem_of(await refresh(client, wrong), 401, "invalid_refresh_token")


async def test_without_redis_time_alone_tells_a_parallel_request_from_a_replay(
    clock: ManualClock, client: httpx.AsyncClient, person: Person, valkey: EmbeddedValkey
) -> None:
    await asyncio.to_thread(valkey.stop)
    try:
        token = person.tokens["refresh_token"]
        answers = await asyncio.gather(*(refresh(client, token) for _ in range(10)))
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.content for answer in answers}) == 1
        clock.advance(2.1)
        problem_of(await refresh(client, token), 401, "invalid_refresh_token")
        problem_of(await refresh(client, answers[0].json()["refresh_token"]), 401, "invalid_refresh_token")
    finally:
        await asyncio.to_thread(valkey.start)


async def test_the_absolute_end_is_not_moved(clock: ManualClock, client: httpx.AsyncClient, person: Person) -> None:
    token = person.tokens["refresh_token"]
    for _ in range(8):
        clock.advance(11 * 86_400)
        token = (await refresh(client, token)).json()["refresh_token"]
    clock.advance(2 * 86_400 - 1)
    token = (await refresh(client, token)).json()["refresh_token"]
    clock.advance(1)
    problem_of(await refresh(client, token), 401, "invalid_refresh_token")


async def test_a_refresh_takes_over_a_new_role(
    client: httpx.AsyncClient, person: Person, connection: Connection
) -> None:
    await connection.execute("UPDATE identity.accounts SET role = 'admin', version = version + 1")
    tokens = (await refresh(client, person.tokens["refresh_token"])).json()
    assert "admin" in tokens["scope"].split()
    answer = await client.get("/v1/admin/users", headers={"Authorization": f"Bearer {tokens['access_token']}"})
    assert answer.status_code == 200


@pytest.mark.parametrize("status", ["banned", "deleted"])
async def test_an_account_that_is_not_active_gets_nothing(
    client: httpx.AsyncClient, person: Person, connection: Connection, status: str
) -> None:
    await connection.execute("UPDATE identity.accounts SET status = $1", status)
    problem_of(await refresh(client, person.tokens["refresh_token"]), 401, "invalid_refresh_token")
    assert await connection.fetchval("SELECT generation FROM identity.sessions") == 0


async def test_the_owner_is_told_of_a_replay(
    client: httpx.AsyncClient, make_person: MakePerson, mailbox: Mailbox
) -> None:
    person = await make_person()
    for _ in range(3):
        await refresh(client, person.tokens["refresh_token"])
    letter = await mailbox.letter(person.email, "A session was ended for your safety")
    assert "used twice" in letter.text
    assert [other.subject for other in mailbox.letters(person.email)].count(letter.subject) == 1
