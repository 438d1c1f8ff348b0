"""The response cache on a Valkey Cluster of three nodes, started from the wheel, and on a server of its own."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import httpx
import pytest
import redis.asyncio as redis

from app.main import create_app
from app.settings import load_settings
from tests.faults.cluster import Cluster, running_cluster, slot_of
from tests.fixtures.people import Person, register
from tests.fixtures.waiting import eventually
from tests.kernel.conftest import client_of

PEOPLE = 12


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with running_cluster(tmp_path) as cluster:
        yield cluster


@pytest.fixture
async def clients(
    environment: dict[str, str], cluster: Cluster, frozen_garbage: None
) -> AsyncIterator[tuple[httpx.AsyncClient, httpx.AsyncClient]]:
    """Of two processes."""
    variables = environment | {"APP_REDIS_CACHE_URL": cluster.nodes[0].url, "APP_REDIS_CACHE_CLUSTER": "true"}
    async with (
        client_of(create_app(load_settings(variables))) as one,
        client_of(create_app(load_settings(variables))) as other,
    ):
        yield one, other


async def overview_of(person: Person, client: httpx.AsyncClient) -> str | None:
    answer = await client.get("/v1/overview", headers=person.headers)
    assert answer.status_code == 200, answer.text
    name: str | None = answer.json()["user"]["display_name"]
    return name


async def remote_hits(client: httpx.AsyncClient) -> float:
    text = (await client.get("/metrics")).text
    start = 'onehop_cache_requests_total{result="hit",tier="remote"}'
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(start))


async def rename(people: list[Person], name: str, one: httpx.AsyncClient, other: httpx.AsyncClient) -> None:
    """A writer reads it at once, and another process soon."""
    for person in people:
        answer = await person.patch("/v1/users/me", json={"display_name": name})
        assert answer.status_code == 200
        assert await overview_of(person, one) == name
    for person in people:
        await eventually(partial(is_named, name, person, other))


async def is_named(name: str, person: Person, client: httpx.AsyncClient) -> bool:
    return await overview_of(person, client) == name


@pytest.mark.slow
async def test_two_processes_on_three_nodes(
    clients: tuple[httpx.AsyncClient, httpx.AsyncClient], cluster: Cluster
) -> None:
    one, other = clients
    await share_answers(cluster, one, other)
    await move_a_slot_in_use(cluster, one)
    await lose_a_node(cluster, one, other)


async def share_answers(cluster: Cluster, one: httpx.AsyncClient, other: httpx.AsyncClient) -> None:
    people = [await register(one) for _ in range(PEOPLE)]
    # Many at one moment, so that users of several nodes meet in one batch.
    await asyncio.gather(*(overview_of(person, one) for person in people))

    async def are_stored() -> bool:
        keys = [key for node in cluster.nodes for key in await node.keys() if b"/v1/overview" in key]
        return len(keys) == PEOPLE

    await eventually(are_stored)
    assert len([node for node in cluster.nodes if await node.keys()]) > 1
    hits = await remote_hits(one)
    assert await asyncio.gather(*(overview_of(person, other) for person in people)) == [None] * PEOPLE
    assert await remote_hits(one) - hits == PEOPLE
    await rename(people, "Changed", one, other)
    assert (await other.get("/readyz")).json()["checks"]["redis"] == "ok"


async def move_a_slot_in_use(cluster: Cluster, one: httpx.AsyncClient) -> None:
    """Of its keys either node has a part meanwhile: MOVED, ASK and TRYAGAIN."""
    person = await register(one)
    assert await overview_of(person, one) is None
    slot = slot_of(str(person.id))
    owner = slot * 3 // 16_384
    source, target = cluster.nodes[owner], cluster.nodes[(owner + 1) % 3]
    names = iter(f"Name {number}" for number in range(100))

    async def use() -> None:
        name = next(names)
        assert (await person.patch("/v1/users/me", json={"display_name": name})).status_code == 200
        assert await overview_of(person, one) == name

    await cluster.move(slot, source, target, use)
    await use()
    assert await target.ask("CLUSTER", "COUNTKEYSINSLOT", slot) > 0


async def lose_a_node(cluster: Cluster, one: httpx.AsyncClient, other: httpx.AsyncClient) -> None:
    """Only its users miss it, and all of them are found again after all have been away."""
    people = [await register(one) for _ in range(PEOPLE)]
    await asyncio.gather(*(overview_of(person, one) for person in people))
    lost = [person for person in people if slot_of(str(person.id)) * 3 // 16_384 == 1]
    kept = [person for person in people if person not in lost]
    # Both processes have all answers in memory, so that one must hear of what the other has written.
    await asyncio.gather(*(overview_of(person, other) for person in people))
    cluster.nodes[1].kill()
    await rename(people, "Again", one, other)
    for person in kept:
        await eventually(partial(is_shared, person, one, other))

    # All of them, at once, for longer than any breaker's time-out; the addresses stay.
    for node in (cluster.nodes[0], cluster.nodes[2]):
        node.kill()
    await rename(people, "Alone", one, other)
    await asyncio.sleep(0.5)
    for node in cluster.nodes:
        node.start()
    await eventually(cluster.is_whole)
    await rename(people, "Together", one, other)
    for person in people:
        await eventually(partial(is_shared, person, one, other))


async def is_shared(person: Person, one: httpx.AsyncClient, other: httpx.AsyncClient) -> bool:
    """Whether one process finds in Redis what the other one has read, both without an answer in memory."""
    assert (await person.post("/v1/events", json={"kind": "a.b"})).status_code == 201
    await overview_of(person, one)
    await asyncio.sleep(0.05)
    before = await remote_hits(one)
    await overview_of(person, other)
    return await remote_hits(one) > before


async def test_each_role_may_have_a_server_of_its_own(
    environment: dict[str, str], tmp_path: Path, redis_url: str, frozen_garbage: None
) -> None:
    """By databases of one server, which tell as well where keys are."""
    cache_url, limits_url = redis_url.replace("db=0", "db=1"), redis_url.replace("db=0", "db=2")
    variables = environment | {"APP_REDIS_CACHE_URL": cache_url, "APP_REDIS_LIMITS_URL": limits_url}
    async with client_of(create_app(load_settings(variables))) as client:
        person = await register(client)
        await overview_of(person, client)
        async with redis.Redis.from_url(cache_url) as cache, redis.Redis.from_url(redis_url) as shared:

            async def is_cached() -> bool:
                return bool(await cache.keys("cache:entry:*"))

            await eventually(is_cached)
            assert await shared.keys("cache:*") == []
        answer = await client.post("/v1/auth/login", json={"email": person.email, "password": "wrong"})
        assert answer.status_code == 401
        async with redis.Redis.from_url(limits_url) as limits:
            assert await limits.dbsize() > 0
