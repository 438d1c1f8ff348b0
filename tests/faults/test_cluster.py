"""The response cache on a Valkey Cluster of three nodes, started from the wheel, and on a server of its own."""

import asyncio
import subprocess
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest
import redis.asyncio as redis

from app.kernel.embedded.valkey import _program
from app.main import create_app
from app.settings import load_settings
from tests.fixtures.application import free_port
from tests.fixtures.people import Person, register
from tests.fixtures.waiting import eventually
from tests.kernel.conftest import client_of

SLOTS = 16_384
NODES = 3
PEOPLE = 12


class Node:
    """A server that is a part of a cluster."""

    def __init__(self, directory: Path) -> None:
        self.port, self.bus_port = free_port(), free_port()
        self.client = redis.Redis(port=self.port)
        directory.mkdir()
        options = {
            "bind": "127.0.0.1",
            "port": self.port,
            "cluster-enabled": "yes",
            "cluster-port": self.bus_port,
            "cluster-node-timeout": 1000,
            "cluster-require-full-coverage": "no",
            "save": "",
            "dir": directory,
            "logfile": directory / "log",
        }
        arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        self.process = subprocess.Popen([_program(), *arguments])

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    async def ask(self, *command: str | int) -> bytes:
        answer: bytes = await self.client.execute_command(*command)  # type: ignore[no-untyped-call]  # redis-py's
        return answer

    async def is_up(self) -> bool:
        try:
            return bool(await self.client.ping())
        except redis.ConnectionError:
            return False

    async def is_ready(self) -> bool:
        info = await self.ask("CLUSTER", "INFO")
        return b"cluster_state:ok" in info and b"cluster_slots_ok:16384" in info and b"known_nodes:3" in info

    async def keys(self) -> list[bytes]:
        return list(await self.client.keys("cache:*"))


@pytest.fixture
def processes_of_cluster(tmp_path: Path) -> Iterator[list[Node]]:
    nodes = [Node(tmp_path / f"node{number}") for number in range(NODES)]
    yield nodes
    for node in nodes:
        node.process.kill()
        node.process.wait()


@pytest.fixture
async def cluster(processes_of_cluster: list[Node]) -> AsyncIterator[list[Node]]:
    nodes = processes_of_cluster
    for number, node in enumerate(nodes):
        await eventually(node.is_up)
        first, last = SLOTS * number // NODES, SLOTS * (number + 1) // NODES - 1
        await node.ask("CLUSTER", "ADDSLOTSRANGE", first, last)
        await node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
    for node in nodes[1:]:
        await nodes[0].ask("CLUSTER", "MEET", "127.0.0.1", node.port, node.bus_port)
    for node in nodes:
        await eventually(node.is_ready)
    yield nodes
    for node in nodes:
        await node.client.aclose()


async def overview_of(person: Person, client: httpx.AsyncClient) -> str | None:
    answer = await client.get("/v1/overview", headers=person.headers)
    assert answer.status_code == 200, answer.text
    name: str | None = answer.json()["user"]["display_name"]
    return name


async def remote_hits(client: httpx.AsyncClient) -> float:
    text = (await client.get("/metrics")).text
    start = 'app_cache_requests_total{result="hit",tier="remote"}'
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(start))


async def test_two_processes_share_answers_on_three_nodes(
    environment: dict[str, str], cluster: list[Node], frozen_garbage: None
) -> None:
    variables = environment | {"APP_REDIS_CACHE_URL": cluster[0].url, "APP_REDIS_CACHE_CLUSTER": "true"}
    async with (
        client_of(create_app(load_settings(variables))) as one,
        client_of(create_app(load_settings(variables))) as other,
    ):
        people = [await register(one) for _ in range(PEOPLE)]
        # Many at one moment, so that users of several nodes meet in one batch.
        await asyncio.gather(*(overview_of(person, one) for person in people))

        async def are_stored() -> bool:
            keys = [key for node in cluster for key in await node.keys() if b"/v1/overview" in key]
            return len(keys) == PEOPLE

        await eventually(are_stored)
        assert len([node for node in cluster if await node.keys()]) > 1
        hits = await remote_hits(one)
        assert await asyncio.gather(*(overview_of(person, other) for person in people)) == [None] * PEOPLE
        assert await remote_hits(one) - hits == PEOPLE

        for person in people:
            answer = await person.patch("/v1/users/me", json={"display_name": "Changed"})
            assert answer.status_code == 200
            assert await overview_of(person, one) == "Changed"
        for person in people:
            await eventually(partial(is_changed, person, other))
        assert (await other.get("/readyz")).json()["checks"]["redis"] == "ok"

        # A node dies: its users' answers come from the database.
        cluster[1].process.kill()
        for person in people:
            answer = await person.patch("/v1/users/me", json={"display_name": "Again"})
            assert answer.status_code == 200
            assert await overview_of(person, one) == "Again"


async def is_changed(person: Person, client: httpx.AsyncClient) -> bool:
    return await overview_of(person, client) == "Changed"


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
