"""No job waits for ever because of what lies before it: jobs of others, jobs whose time has not come, locked rows."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias
from uuid import UUID, uuid4

import asyncpg
import hypothesis
import pytest
from hypothesis import HealthCheck, Phase, given
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from app.jobs.records import ClaimedJob, Outcome, State
from app.jobs.service.execution import Executor
from app.jobs.service.mail_outbox import MailOutbox
from app.jobs.service.relay import Relay
from app.jobs.service.run_context import JobServices
from app.jobs.service.storage import ArtifactStore
from app.jobs.service.turns import Turns
from app.jobs.service.watching import JobWatch
from app.kernel.cache import Cache
from app.kernel.clock import SystemClock
from app.kernel.ids import new_id
from app.kernel.mail import Mailer, make_transport
from app.kernel.queue.slots import Runner
from app.kernel.redis.bus import Bus
from app.kernel.sealing import Keys
from app.settings import Settings
from app.worker import Worker
from tests.fixtures.lives import first_life
from tests.fixtures.sizes import sized
from tests.fixtures.waiting import eventually
from tests.jobs.kinds import Producer, Steps, kinds_of

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

FIRST_USER = UUID(int=1)
LAST_USER = UUID(int=2**128 - 1)
QUEUES = ("default", "bulk")
CAP = 2
LONGEST_RUN = 3
RUNS_OF_A_JOB = 3
AN_HOUR = 3600

# Each is dozens of statements; a found one is not made smaller, which would take minutes.
few_examples = hypothesis.settings(
    max_examples=sized(10),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

INSERT = """
INSERT INTO jobs.jobs (id, user_id, kind, lane, priority, args, run_at, is_due)
SELECT r.id, r.user_id, 'test.noop', r.lane, r.priority, '{}', now() + make_interval(secs => r.seconds), r.seconds = 0
FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::smallint[], $5::integer[])
     AS r(id, user_id, lane, priority, seconds)
"""
# Time passes for the whole table at once.
LET_TIME_PASS = "UPDATE jobs.jobs SET run_at = run_at - make_interval(secs => $1) WHERE state = 0"


@dataclass
class Row:
    """A job. With negative `seconds` it is due, and written by an older release, which does not know `is_due`."""

    user: UUID | None
    queue: str = "default"
    priority: int = 2
    seconds: int = 0
    id: UUID = field(default_factory=new_id)


async def insert(connection: Connection, rows: Sequence[Row]) -> None:
    await connection.execute(
        INSERT,
        [row.id for row in rows],
        [row.user for row in rows],
        [row.queue for row in rows],
        [row.priority for row in rows],
        [row.seconds for row in rows],
    )


def relay_of(producer: Producer, settings: Settings) -> Relay:
    bus = Bus(producer.redis)
    return Relay(
        producer.db,
        Cache(settings.cache, producer.redis, bus, first_life()),
        producer.queue,
        bus,
        clock=SystemClock(),
        settings=settings.jobs,
        queues=QUEUES,
        turns=Turns({"bulk": CAP}),
        kinds={},
        schedules=(),
    )


def executor_of(producer: Producer, settings: Settings) -> Executor:
    bus, clock, keys = Bus(producer.redis), SystemClock(), Keys("k" * 32)
    mailer = Mailer(settings.mail, make_transport(settings.mail, settings.data_dir / "mailbox"), clock)
    services = JobServices(
        db=producer.db,
        cache=Cache(settings.cache, producer.redis, bus, first_life()),
        queue=producer.queue,
        clock=clock,
        mail=MailOutbox(mailer, keys, settings.mail),
        store=ArtifactStore(settings.jobs, settings.data_dir),
        keys=keys,
        product="Test",
        base_url="http://test",
        artifact_days=1,
        user_file_bytes=2**30,
        others={},
    )
    return Executor(
        services,
        watch=JobWatch(bus),
        kinds=kinds_of(Steps()),
        settings=settings.jobs,
        caps={"bulk": CAP},
        worker_id="test",
    )


def lost_ids() -> float:
    return REGISTRY.get_sample_value("onehop_jobs_redispatched_total", {"reason": "lost"}) or 0.0


async def test_jobs_of_the_future_do_not_keep_due_ones_of_others_waiting(
    worker: Worker, connection: Connection, steps: Steps
) -> None:
    """Found by running it: 200 users with a job to come, and the due jobs of all users behind them never started."""
    await insert(connection, [Row(UUID(int=number), seconds=AN_HOUR) for number in range(1, 1001)])
    due = [Row(LAST_USER), Row(UUID(int=2**127)), Row(None)]
    await insert(connection, due)
    await eventually(lambda: {row.id for row in due} <= set(steps.started))
    assert len(steps.started) == len(due)


async def test_one_round_of_the_relay_is_enough_whatever_waits_for_its_time(
    producer: Producer, connection: Connection, settings: Settings
) -> None:
    relay = relay_of(producer, settings)
    await insert(connection, [Row(UUID(int=number), seconds=AN_HOUR) for number in range(1, 2001)])
    await insert(connection, [Row(LAST_USER)])
    await relay.stage()
    assert await relay.refill() == 1
    await connection.execute(LET_TIME_PASS, AN_HOUR + 1.0)
    assert await relay.stage() == 2000
    assert await relay.refill() > 0


async def test_a_locked_row_does_not_lose_its_id(worker: Worker, connection: Connection, steps: Steps) -> None:
    """A client that sends a unique key again and again locks the row of its job, which the claim then skips."""
    lost = lost_ids()
    async with connection.transaction():
        job_id = new_id()
        await insert(connection, [Row(None, id=job_id)])
        await connection.execute("UPDATE jobs.jobs SET dispatched_at = now() WHERE id = $1", job_id)
    async with connection.transaction():
        await connection.execute("SELECT 1 FROM jobs.jobs WHERE id = $1 FOR UPDATE", job_id)
        await worker.redis.client.zadd("jobs:queue:default:0", {str(job_id): 0})
        await worker.redis.client.publish("jobs:wakeup", "")

        async def was_skipped() -> bool:
            return bool(await worker.redis.client.zscore("jobs:queue:default:0", str(job_id)) != 0)

        await eventually(was_skipped)
        await asyncio.sleep(0.3)
        assert steps.started == []
    await eventually(lambda: steps.started == [job_id])
    assert lost_ids() == lost


@few_examples
@given(
    backlog=st.lists(st.integers(0, 25), min_size=1, max_size=12),
    of_the_system=st.integers(0, 25),
    future=st.integers(0, 30),
    limits=st.lists(st.integers(1, 9), min_size=1, max_size=6),
)
async def test_users_take_turns_whatever_the_room(
    producer: Producer,
    connection: Connection,
    backlog: list[int],
    of_the_system: int,
    future: int,
    limits: list[int],
) -> None:
    await connection.execute("DELETE FROM jobs.jobs")
    users = [uuid4() for _ in backlog]
    rows = [Row(user) for user, count in zip(users, backlog, strict=True) for _ in range(count)]
    rows += [Row(None) for _ in range(of_the_system)]
    rows += [Row(uuid4(), seconds=AN_HOUR) for _ in range(future)]
    await insert(connection, rows)
    left = Counter({user: count for user, count in zip(users, backlog, strict=True) if count})
    left_of_the_system = of_the_system
    served: Counter[UUID] = Counter()
    turns = Turns({})
    number = 0
    while left or left_of_the_system:
        limit = limits[number % len(limits)]
        number += 1
        async with producer.db.statement("test.take") as tx:
            taken = await turns.take(tx, "default", limit)
        # Much is taken in each round; all of the room only if users have more or less the same.
        assert 2 * len(taken) >= min(limit, left.total() + left_of_the_system)
        for job in taken:
            if job.user_id is None:
                left_of_the_system -= 1
                continue
            served[job.user_id] += 1
            left[job.user_id] -= 1
            left = +left
            # No user gets the next turn before all others who still wait had theirs.
            assert all(served[job.user_id] <= served[other] + 1 for other in left)
        if left_of_the_system:
            assert served.total() >= (served.total() + of_the_system - left_of_the_system) / 3 - 2 or not left
    assert served == Counter(dict(zip(users, backlog, strict=True)))


JOBS = st.builds(
    Row,
    user=st.sampled_from([None, *(UUID(int=number) for number in (1, 2, 3, 2**64, 2**127))]),
    queue=st.sampled_from(QUEUES),
    priority=st.integers(0, 4),
    seconds=st.sampled_from([0, 0, -60, 2, 5, 9, AN_HOUR]),
)
# How a run ends: for how many more rounds it goes on, and after how many seconds it is tried again, None for never.
RUNS = st.tuples(st.integers(0, LONGEST_RUN), st.sampled_from([None, None, None, 0, 1, 4]))

LIST_DUE = "SELECT id, lane AS queue FROM jobs.jobs WHERE state = 0 AND run_at <= now() AND lane IS DISTINCT FROM $1"
COUNT_LEFT = "SELECT count(*) FROM jobs.jobs WHERE state < 2 AND run_at < now() + interval '10 s'"
LIST_RUNNING = """
SELECT count(*) FROM jobs.jobs WHERE state = 1 AND lane = 'bulk' AND user_id IS NOT NULL GROUP BY user_id
"""


class Scheduler:
    """Relay, claim and ends as they are, in rounds of one second each, with a worker that has `slots` in each queue."""

    def __init__(self, producer: Producer, connection: Connection, settings: Settings, slots: int) -> None:
        self._producer = producer
        self._connection = connection
        self._relay = relay_of(producer, settings)
        self._executor = executor_of(producer, settings)
        self._runner = Runner(self._executor, {}, slots)
        self._slots = slots
        self._running: list[tuple[int, ClaimedJob, Outcome]] = []
        self.write = self._executor.completions.write_for_ever
        self.number = 0
        self.queues: dict[UUID, str] = {}
        self.starts: Counter[UUID] = Counter()
        # For how many rounds a job has been due, and in a queue that was not paused.
        self.waiting: Counter[UUID] = Counter()

    async def flush(self) -> None:
        """Redis is emptied, and the relay notices."""
        await self._producer.redis.client.flushall()
        async with self._producer.db.connect("test.relay") as conn:
            await self._relay.check_epoch(conn)

    async def put(self, rows: Sequence[Row]) -> None:
        copies = [replace(row, id=new_id()) for row in rows]
        await insert(self._connection, copies)
        self.queues |= {row.id: row.queue for row in copies if row.seconds != AN_HOUR}

    async def round(self, runs: Sequence[tuple[int, int | None]], paused: str | None) -> None:
        await self._connection.execute("DELETE FROM jobs.lanes")
        if paused is not None:
            await self._connection.execute("INSERT INTO jobs.lanes (lane, paused_at) VALUES ($1, now())", paused)
        await self._relay.stage()
        await self._relay.refill()
        due = [(row["id"], row["queue"]) for row in await self._connection.fetch(LIST_DUE, paused)]
        started = [job for queue in QUEUES if queue != paused for job in await self._claim(queue)]
        for job in started:
            self.starts[job.id] += 1
            length, again = runs[self.starts.total() % len(runs)]
            is_over = again is None or self.starts[job.id] >= RUNS_OF_A_JOB
            state = State.SUCCEEDED if is_over else State.QUEUED
            outcome = Outcome(job.id, job.run_token, state, delay=float(again or 0))
            self._running.append((self.number + length, job, outcome))
        for job_id, _ in due:
            self.waiting[job_id] += 1
        for job in started:
            self.waiting[job.id] = 0
        for _, job, outcome in [run for run in self._running if run[0] <= self.number]:
            assert await self._executor.completions.add(job.kind, job.user_id, outcome, ())
        self._running = [run for run in self._running if run[0] > self.number]
        await self._connection.execute(LET_TIME_PASS, 1.0)
        self.number += 1

    async def _claim(self, queue: str) -> list[ClaimedJob]:
        free = self._slots - sum(job.queue == queue for _, job, _ in self._running)
        key = f"jobs:queue:{queue}:0"
        taken = await self._producer.redis.client.zpopmin(key, free) if free else []
        async with self._producer.db.statement("test.claim") as tx:
            return await self._executor._claim(tx, [UUID(job_id.decode()) for job_id, _ in taken])


@pytest.mark.slow
@few_examples
@given(
    first=st.lists(JOBS, max_size=25),
    later=st.lists(st.lists(JOBS, max_size=3), max_size=6),
    runs=st.lists(RUNS, min_size=1, max_size=12),
    pauses=st.lists(st.sampled_from([None, *QUEUES]), max_size=6),
    flushes=st.sets(st.integers(0, 8), max_size=2),
    future_users=st.sampled_from([0, 3, 250]),
    slots=st.integers(1, 4),
)
async def test_every_due_job_starts_within_a_bound(
    producer: Producer,
    connection: Connection,
    settings: Settings,
    first: list[Row],
    later: list[list[Row]],
    runs: list[tuple[int, int | None]],
    pauses: list[str | None],
    flushes: set[int],
    future_users: int,
    slots: int,
) -> None:
    """What is due, in a queue that is not paused, starts after as many rounds as the jobs of its queue can take, one
    after the other: nothing else counts, neither what waits for its time nor another queue.
    """
    await connection.execute("DELETE FROM jobs.jobs")
    await producer.redis.client.flushall()
    scheduler = Scheduler(producer, connection, settings, slots)
    writing = asyncio.create_task(scheduler.write())
    await insert(connection, [Row(UUID(int=number + 10), seconds=AN_HOUR) for number in range(future_users)])
    await scheduler.put(first)
    while scheduler.number < max(len(later), len(pauses)) or await connection.fetchval(COUNT_LEFT):
        if scheduler.number < len(later):
            await scheduler.put(later[scheduler.number])
        if scheduler.number in flushes:
            await scheduler.flush()
        await scheduler.round(runs, pauses[scheduler.number] if scheduler.number < len(pauses) else None)
        in_queues = Counter(scheduler.queues.values())
        for job_id, rounds in scheduler.waiting.items():
            assert rounds <= RUNS_OF_A_JOB * in_queues[scheduler.queues[job_id]] * (LONGEST_RUN + 2) + len(flushes)
        assert all(row["count"] <= CAP for row in await connection.fetch(LIST_RUNNING))
    writing.cancel()
    assert set(scheduler.starts) == set(scheduler.queues)
