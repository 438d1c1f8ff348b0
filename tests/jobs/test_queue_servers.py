"""Shards over two Redis servers: both are used, and one that stops takes nothing with it but speed."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TypeAlias
from uuid import UUID

import asyncpg
import pytest
import redis

from app.composition import close_resources, make_resources
from app.dev.embedded import THROWAWAY_VALKEY, EmbeddedValkey
from app.kernel.ids import UserId, new_id
from app.kernel.queue import EPOCH_KEY, JobRef
from app.kernel.resources import Resources
from app.settings import Settings
from app.worker import Worker, open_worker
from tests.fixtures.waiting import eventually
from tests.jobs.conftest import StartWorker
from tests.jobs.kinds import Steps, kinds_of

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


@pytest.fixture(scope="module")
def second_server(servers_directory: Path) -> Iterator[EmbeddedValkey]:
    server = EmbeddedValkey(servers_directory / "valkey-2", settings=THROWAWAY_VALKEY, die_with_parent=True)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def second(second_server: EmbeddedValkey) -> EmbeddedValkey:
    second_server.start()
    with redis.Redis.from_url(second_server.url()) as client:
        client.flushall()
    return second_server


@pytest.fixture
def both(settings: Settings, valkey: EmbeddedValkey, second: EmbeddedValkey) -> Settings:
    """Four shards over two servers."""
    return with_rings(settings, valkey, second, shards=4)


def with_rings(settings: Settings, *servers: EmbeddedValkey, shards: int) -> Settings:
    urls = ",".join(server.url() for server in servers)
    jobs = type(settings.jobs).model_validate(
        settings.jobs.model_dump() | {"redis_urls": urls, "shards": shards, "drain": 0.1}
    )
    return settings.model_copy(update={"jobs": jobs})


@pytest.fixture
async def api(both: Settings) -> AsyncIterator[Resources]:
    """What an API process enqueues with. It tries a lost server again after so long that a test does not see it."""
    patient = both.model_copy(update={"redis": both.redis.model_copy(update={"breaker_cooldown": 30})})
    resources = make_resources(patient, application_name="test")
    await resources.db.open()
    yield resources
    await close_resources(resources)


async def enqueue(api: Resources | Worker, count: int) -> list[UUID]:
    """As many jobs, each of another user."""
    ids = []
    for _ in range(count):
        async with api.db.statement("test.enqueue") as tx:
            ids.append(await api.queue.enqueue(tx, "test.noop", {}, user_id=UserId(new_id())))
    return ids


def held(server: EmbeddedValkey) -> dict[str, int]:
    """How many ids each queue on a server holds."""
    with redis.Redis.from_url(server.url()) as client:
        return {key.decode(): client.zcard(key) for key in sorted(client.keys("jobs:queue:*"))}


async def all_done(connection: Connection, count: int) -> None:
    async def done() -> bool:
        rows = await connection.fetch("SELECT state, attempt, count(*) FROM jobs.jobs GROUP BY state, attempt")
        return [tuple(row) for row in rows] == [(2, 1, count)]

    await eventually(done)


async def test_shard_i_is_on_ring_i_modulo_their_number(
    api: Resources, valkey: EmbeddedValkey, second: EmbeddedValkey
) -> None:
    await enqueue(api, 60)
    assert list(held(valkey)) == ["jobs:queue:default:0", "jobs:queue:default:2"]
    assert list(held(second)) == ["jobs:queue:default:1", "jobs:queue:default:3"]
    depths = held(valkey) | held(second)
    assert await api.queue.depths("default") == [depths[f"jobs:queue:default:{shard}"] for shard in range(4)]
    assert sum(depths.values()) == 60


async def test_there_is_at_least_one_shard_a_ring(
    settings: Settings, valkey: EmbeddedValkey, second: EmbeddedValkey
) -> None:
    resources = make_resources(with_rings(settings, valkey, second, shards=1), application_name="test")
    assert resources.queue.shards == 2
    assert resources.queue.urls == [valkey.url(), second.url()]
    await close_resources(resources)


async def test_a_worker_takes_from_every_ring_at_once(
    api: Resources, both: Settings, connection: Connection, steps: Steps
) -> None:
    async with open_worker(both, kinds_of(steps)):
        await eventually(lambda: leads(connection))
        await enqueue(api, 100)
        await all_done(connection, 100)
    assert len(steps.started) == 100


async def test_slots_are_not_exceeded_by_two_rings(
    api: Resources, both: Settings, connection: Connection, steps: Steps
) -> None:
    few = both.model_copy(update={"jobs": both.jobs.model_copy(update={"slots": 16})})
    async with open_worker(few, kinds_of(steps)) as worker:
        for _ in range(60):
            async with api.db.statement("test.enqueue") as tx:
                await api.queue.enqueue(tx, "test.wait", {}, user_id=UserId(new_id()))
        await eventually(lambda: len(steps.started) >= 4)
        await asyncio.sleep(0.3)
        # The queue may use all slots but those that are kept for the others.
        kept = sum(share.floor for name, share in worker.runner.queues.items() if name != "default")
        assert len(worker.runner.tasks) == len(steps.started) == 16 - kept == 4
        steps.gate.set()
        await all_done(connection, 60)


async def leads(connection: Connection) -> bool:
    return bool(await connection.fetchval("SELECT count(*) FROM jobs.epoch"))


@pytest.mark.parametrize("lost", [0, 1])
async def test_a_ring_that_stops_takes_only_speed(
    api: Resources,
    both: Settings,
    valkey: EmbeddedValkey,
    second: EmbeddedValkey,
    connection: Connection,
    steps: Steps,
    lost: int,
) -> None:
    servers = (valkey, second)
    async with open_worker(both, kinds_of(steps)):
        await eventually(lambda: leads(connection))
        await enqueue(api, 40)
        await all_done(connection, 40)
        servers[lost].stop()
        await enqueue(api, 60)
        await all_done(connection, 100)
        # New rows of the lost server are not even tried once its breaker is open; those of the other go there.
        rows = [api.queue.new_job("test.noop", {}, user_id=UserId(new_id())) for _ in range(100)]
        on_lost = {row.id for row in rows if api.queue._server_of(JobRef(row.id, row.queue, row.user_id)) == lost}
        assert {row.id for row in rows if not row.dispatch} == on_lost
        assert 0 < len(on_lost) < 100
        servers[lost].start()
        await enqueue(api, 40)
        await all_done(connection, 140)
    assert len(steps.started) == 140


async def test_one_emptied_ring_is_noticed(
    api: Resources, both: Settings, second: EmbeddedValkey, connection: Connection, steps: Steps
) -> None:
    async with open_worker(both, kinds_of(steps)) as worker:
        await eventually(lambda: leads(connection))
        worker.runner.paused = frozenset({"default"})
        await connection.execute("INSERT INTO jobs.lanes (lane, paused_at) VALUES ('default', now())")
        await enqueue(api, 40)
        before = await connection.fetchval("SELECT epoch FROM jobs.epoch")
        there = held(second)
        assert sum(there.values()) > 0
        with redis.Redis.from_url(second.url()) as client:
            client.flushall()

        async def is_back() -> bool:
            return held(second) == there

        await eventually(is_back)
        epoch = await connection.fetchval("SELECT epoch FROM jobs.epoch")
        assert epoch != before
        for server in worker.queue.urls:
            with redis.Redis.from_url(server) as client:
                assert client.get(EPOCH_KEY) == str(epoch).encode()
        await connection.execute("UPDATE jobs.lanes SET paused_at = NULL")
        worker.runner.queues_changed = True
        await all_done(connection, 40)


async def test_the_number_of_rings_may_change(
    api: Resources, connection: Connection, start_worker: StartWorker, steps: Steps
) -> None:
    await enqueue(api, 40)
    await connection.execute("UPDATE jobs.jobs SET dispatched_at = now() - interval '1 minute'")
    await start_worker()
    await all_done(connection, 40)
    assert len(steps.started) == 40
