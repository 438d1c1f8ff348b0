"""The program while its Postgres is away, hangs, is slow, changes or is used up: what requests get, and how soon.

That an answer comes at all is the proof that something bounds it; how soon it comes is for `benchmarks/faults`.
"""

import asyncio
import re
import time
from inspect import get_annotations

import httpx
import pytest

from app.kernel.database import Database, DirectConn
from tests.architecture.source import queries
from tests.faults.proxy import Proxy
from tests.fixtures.answers import problem_of
from tests.fixtures.people import Person
from tests.fixtures.servers import Connection
from tests.fixtures.waiting import eventually, in_time

MINE = "/v1/users/me/events"
OVERVIEW = "/v1/overview"
ME = "/v1/users/me"
EVENT = {"kind": "page.viewed"}


@pytest.fixture
def environment(environment: dict[str, str], to_postgres: Proxy) -> dict[str, str]:
    return environment | {"DATABASE_URL": to_postgres.url}


async def are_answered(person: Person, number: int = 10) -> bool:
    """As many reads at once as the pool has connections, none of them from the cache."""
    answers = await asyncio.gather(*(person.get(MINE, params={"limit": limit + 1}) for limit in range(number)))
    return {answer.status_code for answer in answers} == {200}


async def test_stopped(person: Person, client: httpx.AsyncClient, to_postgres: Proxy) -> None:
    hot = await person.get(OVERVIEW)
    async with to_postgres.refusing():
        # What is in the cache goes on, and no other request waits.
        assert (await person.get(OVERVIEW)).content == hot.content
        requests = [person.get(MINE, params={"limit": limit + 1}) for limit in range(20)]
        requests += [person.post("/v1/events", json=EVENT) for _ in range(5)]
        requests += [client.post("/v1/auth/login", json={"email": person.email, "password": person.password})]
        async with in_time():
            answers = await asyncio.gather(*requests)
        for answer in answers:
            problem_of(answer, 503, "database_unavailable")
            assert answer.headers["retry-after"] == "1"
        assert (await client.get("/livez")).status_code == 200
        assert (await client.get("/readyz")).json()["checks"]["database"] == "failing"
    await eventually(lambda: are_answered(person))


@pytest.mark.settings(
    APP_DATABASE_STATEMENT_TIMEOUT="0.5",
    APP_DATABASE_ACQUIRE_TIMEOUT="0.25",
    APP_DATABASE_CONNECT_TIMEOUT="0.5",
)
async def test_frozen(person: Person, client: httpx.AsyncClient, to_postgres: Proxy) -> None:
    hot = await person.get(ME)
    async with to_postgres.frozen():
        for _ in range(2):
            requests = [person.get(MINE, params={"limit": limit + 1}) for limit in range(20)]
            requests += [person.post("/v1/events", json=EVENT)]
            # The server stays frozen until they are answered: by the time-outs of statements and connections, and not
            # by that of requests, which would be a 504.
            async with in_time():
                answers = await asyncio.gather(*requests)
            for answer in answers:
                assert answer.status_code == 503, answer.text
                assert answer.json()["code"] in {"database_unavailable", "pool_exhausted"}
        assert (await person.get(ME)).content == hot.content
        assert (await client.get("/livez")).status_code == 200
    await eventually(lambda: are_answered(person))


@pytest.mark.settings(APP_DATABASE_LOCK_TIMEOUT="0.3")
async def test_a_slow_table_does_not_slow_the_others_down(person: Person, connection: Connection) -> None:
    async with connection.transaction():
        await connection.execute("LOCK TABLE users.events IN ACCESS EXCLUSIVE MODE")
        started = time.perf_counter()
        waiting = asyncio.create_task(person.get(MINE))
        others = 0
        # The lock is held until both are answered.
        async with in_time():
            while not waiting.done() or not others:
                assert (await person.get(f"/v1/users/{person.id}")).status_code == 200
                others += 1
                await asyncio.sleep(0.02)
        answer = await waiting
    problem_of(answer, 503, "database_unavailable")
    assert time.perf_counter() - started >= 0.3
    assert (await person.get(MINE)).status_code == 200


@pytest.mark.settings(APP_DATABASE_POOL_SIZE="1", APP_DATABASE_ACQUIRE_TIMEOUT="0.25")
async def test_no_connection_left(person: Person, client: httpx.AsyncClient, db: Database) -> None:
    async with db.read("test.holder"):
        started = time.perf_counter()
        async with in_time():
            answer = await person.get(MINE)
        problem_of(answer, 503, "pool_exhausted")
        assert answer.headers["retry-after"] == "1"
        assert time.perf_counter() - started >= 0.25
        assert [(await client.get(path)).status_code for path in ("/livez", "/metrics")] == [200, 200]
    # Nor does any request hold two of them, which would now wait for itself.
    assert (await person.get(OVERVIEW)).status_code == 200
    assert (await person.post("/v1/events", json=EVENT, headers={"Idempotency-Key": "1"})).status_code == 201
    assert (await person.patch(ME, json={"bio": "b"})).status_code == 200
    job = await person.post("/v1/jobs", json={"kind": "export.events", "args": {"format": "csv"}})
    assert job.status_code == 202
    again = await client.post("/v1/auth/refresh", json={"refresh_token": person.tokens["refresh_token"]})
    assert again.status_code == 200


async def test_broken_connections_are_not_noticed_by_readers(person: Person, to_postgres: Proxy) -> None:
    assert await are_answered(person)
    to_postgres.reset()
    requests = [person.get(MINE, params={"limit": 50 + number}) for number in range(20)]
    assert {answer.status_code for answer in await asyncio.gather(*requests)} == {200}


async def test_a_write_with_a_key_is_done_once_wherever_its_connection_breaks(
    person: Person, to_postgres: Proxy, connection: Connection
) -> None:
    statuses = []
    for step in range(7):
        headers = {"Idempotency-Key": f"key-{step}"}
        to_postgres.slow_down(towards="client", latency=0.05)
        writing = asyncio.create_task(person.post("/v1/events", json=EVENT, headers=headers))
        # Between BEGIN and COMMIT, or the answer to it.
        await asyncio.sleep(0.025 + 0.05 * step)
        to_postgres.reset()
        await to_postgres.restore()
        answer = await writing
        if answer.status_code != 201:
            # The old backend may hold the key until it finds out that it is alone.
            problem_of(answer, 409, "request_in_progress")
            statuses.append(409)

            async def is_done(headers: dict[str, str] = headers) -> bool:
                return (await person.post("/v1/events", json=EVENT, headers=headers)).status_code == 201

            await eventually(is_done)
        assert await connection.fetchval("SELECT count(*) FROM users.events") == step + 1
    assert len(statuses) < 7


async def test_a_column_added_under_way(person: Person, connection: Connection) -> None:
    async def use() -> set[int]:
        answers = [
            await person.patch(ME, json={"bio": "b"}),
            await person.get(ME),
            await person.post("/v1/events", json=EVENT, headers={"Idempotency-Key": str(time.perf_counter())}),
            await person.patch("/v1/users/me/preferences", json={"extra": {"a": 1}}),
        ]
        return {answer.status_code for answer in answers}

    assert await use() == {200, 201}
    for table in ("users.users", "users.events", "users.preferences", "kernel.idempotency_keys"):
        await connection.execute(f"ALTER TABLE {table} ADD COLUMN added text")
    assert await use() == {200, 201}


def test_no_statement_leaves_a_session_behind() -> None:
    """What a pooler that lends a connection for one transaction cannot carry is said on a connection of its own."""
    stateful = re.compile(
        r"\bSET\s+(?!LOCAL\b|TRANSACTION\b)\w+\s*(=|TO\b)(?=[^,]*;?\s*$)|\bLISTEN\b|\bTEMP(ORARY)?\s+TABLE\b"
        r"|\bpg_(try_)?advisory_lock(_shared)?\s*\(|\bWITH\s+HOLD\b|^\s*(PREPARE|DECLARE|DISCARD|LOAD)\b"
    )
    found = set()
    for query in queries():
        if not stateful.search(re.sub(r"\bUPDATE\b.*", "", query.sql, flags=re.DOTALL)):
            continue
        function = getattr(query.file.load(), query.function or "", None)
        if function is None or get_annotations(function, eval_str=True).get("conn") is not DirectConn:
            found.add(str(query))
    # Migrations ask for a direct address.
    assert found == {"app.kernel.schema.migrations.TAKE_LOCK"}
