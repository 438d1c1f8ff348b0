"""The order of jobs: users take turns, long work is capped, queues have floors, can be full and can be paused."""

import asyncio
from typing import Any, TypeAlias
from uuid import UUID

import asyncpg
import pytest

from app.dev.embedded import EmbeddedValkey
from app.jobs.records import QueueDepth
from app.jobs.service.backlogs import publish_backlogs
from app.kernel.ids import UserId, new_id
from app.kernel.queue.slots import QueueShare, Runner
from app.settings import Settings
from app.worker import Worker, open_worker
from tests.fixtures.application import Lifespan
from tests.fixtures.people import Person
from tests.fixtures.waiting import eventually, in_time
from tests.jobs.conftest import StartWorker
from tests.jobs.kinds import Steps, kinds_of

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


async def enqueue(worker: Worker, kind: str, count: int, user_id: UserId | None, **options: Any) -> list[UUID]:
    rows = [worker.queue.new_job(kind, {}, user_id=user_id, **options) for _ in range(count)]
    async with worker.db.statement("test.enqueue") as tx:
        return [done.id for done in await worker.queue.enqueue_rows(tx, rows)]


async def pause(worker: Worker, connection: Connection) -> None:
    """Keeps the worker from starting anything."""
    await connection.execute(
        "INSERT INTO jobs.lanes (lane, paused_at) SELECT unnest($1::text[]), now()", list(worker.runner.queues)
    )
    worker.runner.queues_changed = True
    await eventually(lambda: worker.runner.free_slots_by_queue() == {})


async def resume(worker: Worker, connection: Connection) -> None:
    await connection.execute("UPDATE jobs.lanes SET paused_at = NULL")
    worker.runner.queues_changed = True


async def all_done(connection: Connection, count: int) -> None:
    async def are_done() -> bool:
        return bool(await connection.fetchval("SELECT count(*) FROM jobs.jobs WHERE state = 2") == count)

    await eventually(are_done)


@pytest.mark.slow
async def test_few_jobs_of_one_user_go_before_many_of_another(
    start_worker: StartWorker, connection: Connection, steps: Steps
) -> None:
    worker = await start_worker(slots=16)
    await pause(worker, connection)
    busy, quiet = UserId(new_id()), UserId(new_id())
    await enqueue(worker, "test.noop", 1000, busy)
    late = await enqueue(worker, "test.noop", 10, quiet)
    await resume(worker, connection)
    await all_done(connection, 1010)
    assert max(steps.started.index(job_id) for job_id in late) < 40


async def test_beyond_the_window_users_take_turns_too(
    start_worker: StartWorker, connection: Connection, steps: Steps
) -> None:
    worker = await start_worker(slots=16, window=20)
    await pause(worker, connection)
    await connection.execute(
        """
        INSERT INTO jobs.jobs (id, user_id, kind, lane, args)
        SELECT gen_random_uuid(), u.id, 'test.noop', 'default', '{}'
        FROM unnest($1::uuid[], $2::integer[]) AS u(id, count), generate_series(1, u.count)
        """,
        [UUID(int=1), UUID(int=2), UUID(int=3)],
        [300, 5, 5],
    )

    async def is_full() -> bool:
        return bool(await worker.redis.client.zcard("jobs:queue:default:0") == 20)

    await eventually(is_full)
    queued = await worker.redis.client.zrange("jobs:queue:default:0", 0, -1)
    owners = await connection.fetch(
        "SELECT user_id, count(*) FROM jobs.jobs WHERE id = ANY($1::uuid[]) GROUP BY user_id ORDER BY user_id",
        [UUID(job_id.decode()) for job_id in queued],
    )
    assert [(row["user_id"].int, row["count"]) for row in owners] == [(1, 10), (2, 5), (3, 5)]
    assert await worker.relay.refill() == 0
    await resume(worker, connection)
    await all_done(connection, 310)
    assert len(steps.started) == 310


async def test_long_work_of_one_user_is_capped(start_worker: StartWorker, connection: Connection, steps: Steps) -> None:
    worker = await start_worker(user_running=2)
    busy = UserId(new_id())
    await enqueue(worker, "test.wait", 8, busy, queue="bulk")
    await eventually(lambda: len(steps.started) == 2)
    (other,) = await enqueue(worker, "test.wait", 1, UserId(new_id()), queue="bulk")
    await eventually(lambda: other in steps.started)
    await asyncio.sleep(0.3)
    assert len(steps.started) == 3
    rows = await connection.fetch("SELECT attempt FROM jobs.jobs WHERE state = 0")
    assert [row["attempt"] for row in rows] == [0] * 6
    steps.gate.set()
    await all_done(connection, 9)
    assert await connection.fetchval("SELECT max(attempt) FROM jobs.jobs") == 1


async def test_the_cap_holds_without_redis_too(
    start_worker: StartWorker, steps: Steps, connection: Connection, valkey: EmbeddedValkey
) -> None:
    valkey.stop()
    worker = await start_worker(user_running=2)
    await enqueue(worker, "test.wait", 6, UserId(new_id()), queue="bulk")
    await eventually(lambda: len(steps.started) == 2)
    (other,) = await enqueue(worker, "test.wait", 1, UserId(new_id()), queue="bulk")
    await eventually(lambda: other in steps.started)
    assert len(steps.started) == 3
    assert await connection.fetchval("SELECT count(*) FROM jobs.jobs WHERE state = 0 AND attempt = 0") == 4
    steps.gate.set()


@pytest.mark.parametrize("news", ["heard", "not heard", "no redis"])
async def test_a_paused_queue_starts_nothing(
    worker: Worker, connection: Connection, steps: Steps, valkey: EmbeddedValkey, news: str
) -> None:
    if news == "no redis":
        valkey.stop()
    await connection.execute("INSERT INTO jobs.lanes (lane, paused_at) VALUES ('default', now())")
    if news == "heard":
        await worker.queue.control("queues")
        await eventually(lambda: worker.runner.paused == {"default"})
    await enqueue(worker, "test.noop", 3, None)
    (urgent,) = await enqueue(worker, "test.noop", 1, None, queue="critical")
    await all_done(connection, 1)
    await asyncio.sleep(0.3)
    assert steps.started == [urgent]
    await connection.execute("UPDATE jobs.lanes SET paused_at = NULL")
    if news == "heard":
        await worker.queue.control("queues")
    await all_done(connection, 4)


async def test_a_higher_priority_goes_first(start_worker: StartWorker, connection: Connection, steps: Steps) -> None:
    worker = await start_worker(slots=16)
    await pause(worker, connection)
    low = await enqueue(worker, "test.noop", 20, None, priority=4)
    high = await enqueue(worker, "test.noop", 20, None, priority=0)
    await resume(worker, connection)
    await all_done(connection, 40)
    assert set(steps.started[:20]) == set(high)
    assert set(steps.started[20:]) == set(low)


@pytest.mark.parametrize("redis_is_there", [True, False])
async def test_all_shards_are_served_and_their_number_may_change(
    start_worker: StartWorker, settings: Settings, connection: Connection, steps: Steps, redis_is_there: bool
) -> None:
    shards = settings.model_copy(update={"jobs": settings.jobs.model_copy(update={"shards": 4})})
    async with open_worker(shards, kinds_of(steps)) as four:
        await pause(four, connection)
        for _ in range(30):
            await enqueue(four, "test.noop", 1, UserId(new_id()))
        depths = await four.queue.depths("default")
        if not redis_is_there:
            await four.redis.client.flushall()
        await four.drain()
        await resume(four, connection)
    assert sum(depths) == 30
    assert min(depths) > 0
    # Two of the four old shards are no longer looked at; the sweep finds what lies there.
    await connection.execute("UPDATE jobs.jobs SET dispatched_at = now() - interval '1 minute' WHERE state = 0")
    await start_worker(shards=2)
    await all_done(connection, 30)


def test_slots_are_shared_by_floors_and_ceilings() -> None:
    queues = {
        "a": QueueShare(weight=5, floor=2),
        "b": QueueShare(weight=1, floor=3, ceiling=4),
        "c": QueueShare(weight=1),
    }
    runner = Runner(None, queues, slots=10)  # type: ignore[arg-type]
    assert runner.free_slots_by_queue() == {"a": 7, "b": 4, "c": 5}
    runner._running.update({"a": 7})
    runner.tasks.update({new_id(): None for _ in range(7)})  # type: ignore[misc]
    assert runner.free_slots_by_queue() == {"b": 3}
    runner.paused = frozenset({"b"})
    assert runner.free_slots_by_queue() == {}


def test_a_heavier_queue_is_served_first_more_often() -> None:
    runner = Runner(None, {"heavy": QueueShare(weight=6), "light": QueueShare(weight=1)}, slots=4)  # type: ignore[arg-type]
    firsts = [next(iter(runner.free_slots_by_queue())) for _ in range(3000)]
    assert 0.82 < firsts.count("heavy") / 3000 < 0.90


@pytest.mark.settings(APP_JOBS_BACKLOG_LIMIT="100")
async def test_a_full_queue_refuses_with_an_estimate(
    person: Person, running_app: Lifespan, connection: Connection
) -> None:
    resources = running_app._application.state.resources
    backlogs = running_app._application.state.jobs.backlogs
    export = {"kind": "export.events", "args": {"format": "csv"}}

    async def report(waiting: int, finished: int) -> None:
        depth = QueueDepth("bulk", False, waiting, 1.0, 3, finished, 0)
        await publish_backlogs(resources.bus, [depth])

        def is_heard() -> bool:
            told = backlogs._reports.get("bulk")
            return told is not None and (told.waiting, told.rate) == (waiting, finished / 60)

        await eventually(is_heard)

    await report(99, 60)
    assert (await person.post("/v1/jobs", json=export)).status_code == 202
    await report(149, 60)
    answer = await person.post("/v1/jobs", json=export)
    assert (answer.status_code, answer.json()["code"]) == (429, "backlog_full")
    assert answer.headers["retry-after"] == "50"
    await report(149, 0)
    assert (await person.post("/v1/jobs", json=export)).headers["retry-after"] == "3600"
    assert await connection.fetchval("SELECT count(*) FROM jobs.jobs WHERE kind = 'export.events'") == 1


async def test_the_relay_reports_what_waits(worker: Worker, connection: Connection) -> None:
    await pause(worker, connection)
    seen: list[bytes] = []
    await worker.redis.client.ping()
    async with worker.redis.client.pubsub() as pubsub:
        await pubsub.subscribe("jobs:queues")
        await enqueue(worker, "test.noop", 5, None, queue="bulk")
        await worker.relay.observe()
        async with in_time():
            while not seen:
                message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=1)
                if message is not None and b'"bulk","waiting":5' in message["data"]:
                    seen.append(message["data"])
    assert seen
