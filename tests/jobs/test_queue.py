"""The producer's side: one statement, one round trip, and nothing before the commit."""

from typing import TypeAlias

import asyncpg
import pytest

from app.dev.embedded import EmbeddedValkey
from app.jobs.service.relay import Relay
from app.jobs.service.turns import Turns
from app.kernel.cache import Cache
from app.kernel.clock import SystemClock
from app.kernel.redis.bus import Bus
from app.settings import Settings
from tests.fixtures.lives import first_life
from tests.fixtures.waiting import eventually
from tests.jobs.kinds import Producer

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


async def test_enqueue_is_one_statement_and_one_round_trip(producer: Producer, connection: Connection) -> None:
    with producer.db.recorder() as seen:
        async with producer.db.statement("test.enqueue") as tx:
            job_id = await producer.queue.enqueue(tx, "test.noop", {"number": 1}, user_id=None)
    assert len(seen) == 1
    assert producer.redis.calls == 1
    assert await producer.redis.client.zrange("jobs:queue:default:0", 0, -1) == [str(job_id).encode()]
    row = await connection.fetchrow("SELECT id, args, dispatched_at = created_at AS dispatched FROM jobs.jobs")
    assert row is not None
    assert dict(row) == {"id": job_id, "args": '{"number": 1}', "dispatched": True}


async def test_all_jobs_of_a_transaction_are_one_round_trip(producer: Producer) -> None:
    async with producer.db.transaction("test.enqueue") as tx:
        for queue in ("default", "bulk", "critical"):
            await producer.queue.enqueue(tx, "test.noop", {}, user_id=None, queue=queue)
        assert producer.redis.calls == 0
    assert producer.redis.calls == 1


async def test_a_rollback_leaves_nothing(producer: Producer, connection: Connection) -> None:
    class RolledBack(Exception):
        pass

    async def enqueue_and_fail() -> None:
        async with producer.db.transaction("test.enqueue") as tx:
            await producer.queue.enqueue(tx, "test.noop", {}, user_id=None)
            raise RolledBack

    with pytest.raises(RolledBack):
        await enqueue_and_fail()
    assert producer.redis.calls == 0
    assert await connection.fetchval("SELECT count(*) FROM jobs.jobs") == 0


async def test_without_redis_the_row_waits_for_the_relay(
    producer: Producer, connection: Connection, valkey: EmbeddedValkey
) -> None:
    valkey.stop()
    for _ in range(7):
        async with producer.db.statement("test.enqueue") as tx:
            await producer.queue.enqueue(tx, "test.noop", {}, user_id=None)
    assert await connection.fetchval("SELECT count(*) FROM jobs.jobs WHERE dispatched_at IS NULL") >= 1
    assert await connection.fetchval("SELECT count(*) FROM jobs.jobs WHERE state = 0") == 7


async def test_a_job_that_met_a_hiccup_of_redis_is_brought_there_soon(
    producer: Producer, connection: Connection, valkey: EmbeddedValkey
) -> None:
    valkey.stop()
    async with producer.db.statement("test.enqueue") as tx:
        job_id = await producer.queue.enqueue(tx, "test.noop", {}, user_id=None)
    assert await connection.fetchval("SELECT dispatched_at IS NOT NULL FROM jobs.jobs")
    valkey.start()

    async def is_there() -> bool:
        return bool(await producer.redis.client.zrange("jobs:queue:default:0", 0, -1) == [str(job_id).encode()])

    await eventually(is_there)


async def test_redis_holds_no_more_ids_than_the_window_allows(producer: Producer, connection: Connection) -> None:
    for _ in range(20):
        async with producer.db.statement("test.enqueue") as tx:
            await producer.queue.enqueue(tx, "test.noop", {}, user_id=None)
    assert await producer.redis.client.zcard("jobs:queue:default:0") == 4
    assert await connection.fetchval("SELECT count(*) FROM jobs.jobs WHERE dispatched_at IS NULL") == 16


async def test_ids_that_were_handed_out_together_are_all_found_when_they_get_lost(
    producer: Producer, connection: Connection, settings: Settings
) -> None:
    await connection.execute(
        """
        INSERT INTO jobs.jobs (id, kind, lane, priority, args, max_attempts, timeout_seconds, run_at, dispatched_at)
        SELECT md5(n::text)::uuid, 'test.noop', 'default', 2, '{}', 8, 300, now(), now() - interval '1 minute'
        FROM generate_series(1, 1100) AS n
        """
    )
    bus = Bus(producer.redis)
    relay = Relay(
        producer.db,
        Cache(settings.cache, producer.redis, bus, first_life()),
        producer.queue,
        bus,
        clock=SystemClock(),
        settings=settings.jobs,
        queues=("default",),
        turns=Turns({}),
        kinds={},
        schedules=(),
    )
    assert await relay.sweep() == 1100
    assert await producer.redis.client.zcard("jobs:queue:default:0") == 1100
    assert await relay.sweep() == 0
