"""Several API processes: a change made on one is seen on the others, whatever happens to the messages between them."""

import asyncio
import random
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from functools import partial

import httpx
import pytest
import redis

from app.dev.embedded import EmbeddedPostgres, EmbeddedValkey
from app.main import create_app
from app.settings import Settings
from tests.faults.signals import frozen
from tests.fixtures.answers import problem_of
from tests.fixtures.application import Lifespan, LiveServer
from tests.fixtures.http import http_client
from tests.fixtures.people import Person, register
from tests.fixtures.servers import Connection
from tests.fixtures.waiting import eventually, in_time, scaled
from tests.kernel.conftest import client_of

ME = "/v1/users/me"


@pytest.fixture
async def two(settings: Settings, frozen_garbage: None) -> AsyncIterator[list[Person]]:
    """One person at two applications, each with its own cache and connections, as two processes have them."""
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(client_of(create_app(settings))) for _ in range(2)]
        first = await register(clients[0])
        yield [first, Person(clients[1], first.id, first.email, first.password, first.tokens)]


async def name_at(person: Person) -> str:
    answer = await person.get(ME)
    assert answer.status_code == 200, answer.text
    name: str = answer.json()["display_name"]
    return name


async def test_a_change_is_seen_everywhere(live_server: LiveServer) -> None:
    async with AsyncExitStack() as stack:
        bases = await asyncio.gather(*(live_server(APP_CACHE_TTL="3600") for _ in range(2)))
        clients = [await stack.enter_async_context(http_client(base, timeout=scaled(20))) for base in bases]
        writer = await register(clients[0])
        reader = Person(clients[1], writer.id, writer.email, writer.password, writer.tokens)
        for number in range(20):
            # Both hold the old answer in memory.
            await asyncio.gather(name_at_or_none(writer), name_at_or_none(reader))
            name = f"Name {number}"
            assert (await writer.patch(ME, json={"display_name": name})).status_code == 200
            assert await name_at(writer) == name
            # It is pushed: by itself the old answer would stay for an hour.
            await eventually(partial(shows, reader, name))


async def shows(person: Person, name: str) -> bool:
    return await name_at(person) == name


async def name_at_or_none(person: Person) -> str | None:
    name: str | None = (await person.get(ME)).json()["display_name"]
    return name


async def test_a_log_out_counts_everywhere(two: list[Person]) -> None:
    assert [(await person.get(ME)).status_code for person in two] == [200, 200]
    assert (await two[0].post("/v1/auth/logout")).status_code == 204
    for person in two:
        problem_of(await person.get(ME), 401, "token_revoked")


async def test_cut_messages(two: list[Person], valkey: EmbeddedValkey) -> None:
    """The connection that carries the messages is cut before each change."""
    for number in range(5):
        await asyncio.gather(*(name_at_or_none(person) for person in two))
        cut_messages(valkey)
        writer, reader = two[number % 2], two[1 - number % 2]
        await writer.patch(ME, json={"display_name": f"Name {number}"})
        assert await name_at(writer) == f"Name {number}"
        await eventually(lambda: is_named(reader, f"Name {number}"))  # noqa: B023 - used at once


def cut_messages(valkey: EmbeddedValkey) -> None:
    with redis.Redis.from_url(valkey.url()) as administrator:
        administrator.execute_command("CLIENT", "KILL", "TYPE", "pubsub")


async def is_named(person: Person, name: str) -> bool:
    return await name_at(person) == name


@pytest.mark.parametrize("fault", ["flush", "restart"])
async def test_redis_loses_everything(two: list[Person], valkey: EmbeddedValkey, fault: str) -> None:
    await asyncio.gather(*(name_at_or_none(person) for person in two))
    if fault == "flush":
        with redis.Redis.from_url(valkey.url()) as administrator:
            administrator.flushall()
    else:
        valkey.stop()
        await two[0].patch(ME, json={"display_name": "Between"})
        # Written without Redis: the writer sees it, and the other one as soon as it knows that messages are missing.
        assert await name_at(two[0]) == "Between"
        await eventually(lambda: is_named(two[1], "Between"))
        valkey.start()
    await two[0].patch(ME, json={"display_name": "After"})
    assert await name_at(two[0]) == "After"
    await eventually(lambda: is_named(two[1], "After"))


@pytest.mark.parametrize("seed", range(3))
async def test_random_traffic_never_reads_what_is_older_than_the_own_write(
    two: list[Person], connection: Connection, valkey: EmbeddedValkey, seed: int
) -> None:
    """Readers and writers at both applications, with faults in between; in the end all of them agree with Postgres."""
    chance = random.Random(seed)
    # The newest version that each application has acknowledged; a read that begins later must not be below it.
    written = [0, 0]
    numbers = iter(range(1, 10_000))

    async def write(place: int) -> None:
        number = next(numbers)
        answer = await two[place].patch(ME, json={"display_name": f"{number}"})
        assert answer.status_code == 200
        written[place] = max(written[place], version_of(answer))

    async def read(place: int) -> None:
        at_least = written[place]
        answer = await two[place].get(ME)
        assert answer.status_code == 200
        assert version_of(answer) >= at_least, "a read went back behind an own write"

    async def act() -> None:
        for _ in range(40):
            what = chance.random()
            place = chance.randrange(2)
            if what < 0.25:
                await write(place)
            elif what < 0.26:
                cut_messages(valkey)
            else:
                await read(place)
            if what > 0.9:
                await asyncio.sleep(chance.random() / 200)

    await asyncio.gather(*(act() for _ in range(8)))
    stored = await connection.fetchval("SELECT display_name FROM users.users WHERE id = $1", two[0].id)
    for person in two:
        await eventually(lambda: is_named(person, stored))  # noqa: B023 - used at once


def version_of(answer: httpx.Response) -> int:
    """The version of a profile, which is the end of its entity tag."""
    return int(answer.headers["etag"].strip('"').rpartition("-")[2])


async def test_metrics_of_two_processes_are_added_up(live_server: LiveServer) -> None:
    base = await live_server(workers=2)
    for _ in range(60):
        # A connection each, so that both processes get some.
        async with http_client(base, timeout=scaled(20)) as client:
            assert (await client.get("/livez")).status_code == 200
    pattern = re.compile(
        r'^onehop_http_server_request_duration_seconds_count\{([^}]*route="/livez"[^}]*)\} (\S+)$', re.MULTILINE
    )

    async def count() -> float:
        async with http_client(base, timeout=scaled(20)) as client:
            text = (await client.get("/metrics")).text
        assert text.count("\nonehop_build_info{") == 1
        ((labels, count),) = pattern.findall(text)
        assert 'http_request_method="GET"' in labels
        return float(count)

    async def are_counted() -> bool:
        return await count() == 60

    # A request is counted behind its answer.
    await eventually(are_counted)
    # Whichever process is asked, it knows of all of them.
    assert {await count() for _ in range(10)} == {60.0}


async def test_postgres_away_and_back(live_server: LiveServer, postgres: EmbeddedPostgres) -> None:
    base = await live_server(APP_DATABASE_STATEMENT_TIMEOUT="2", APP_CACHE_ENABLED="false")
    async with http_client(base, timeout=scaled(20)) as client:
        person = await register(client)
        pid = postgres.pid()
        assert pid is not None
        with frozen(pid):
            async with in_time():
                problem_of(await person.get(ME), 503, "database_unavailable")
            assert (await client.get("/livez")).status_code == 200
            not_ready = await client.get("/readyz")
            assert not_ready.json()["checks"]["database"] == "failing"
        await eventually(lambda: is_ready(client))
        await eventually(lambda: is_found(person))
        postgres.stop(mode="immediate")
        try:
            async with in_time():
                answers = await asyncio.gather(*(person.get(ME) for _ in range(20)))
            for answer in answers:
                problem_of(answer, 503, "database_unavailable")
                assert answer.headers["retry-after"] == "1"
        finally:
            postgres.start()
        await eventually(lambda: is_found(person))
        # The pool is whole again: as many at once as it has connections.
        answers = await asyncio.gather(*(person.get(ME) for _ in range(10)))
        assert [answer.status_code for answer in answers] == [200] * 10


async def is_ready(client: httpx.AsyncClient) -> bool:
    return (await client.get("/readyz")).status_code == 200


async def is_found(person: Person) -> bool:
    return (await person.get(ME)).status_code == 200


async def test_started_before_postgres(settings: Settings, postgres: EmbeddedPostgres, frozen_garbage: None) -> None:
    postgres.stop(mode="immediate")
    try:
        async with Lifespan(create_app(settings)).running() as running:
            transport = httpx.ASGITransport(running)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                assert (await client.get("/livez")).status_code == 200
                answer = await client.get("/readyz")
                problem_content = answer.json()
                assert (answer.status_code, problem_content["code"]) == (503, "not_ready")
                assert problem_content["checks"] == {"database": "failing", "redis": "ok", "signing_key": "failing"}
                assert answer.headers["retry-after"] == "1"
                postgres.start()
                await eventually(lambda: is_ready(client))
                await register(client)
    finally:
        postgres.start()
