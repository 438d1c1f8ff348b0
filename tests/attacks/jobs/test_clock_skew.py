"""Hosts whose clocks differ: what is compared in the database is compared by its own clock, so nothing comes late."""

from datetime import UTC, datetime, timedelta
from time import time
from typing import TypeAlias

import asyncpg
import pytest
from prometheus_client import REGISTRY

from app.jobs.api import JOB_KINDS
from app.kernel.clock import SystemClock
from app.settings import Settings
from app.worker import open_worker
from tests.attacks.jobs.test_starvation import Row, insert, lost_ids
from tests.fixtures.application import Lifespan
from tests.fixtures.people import Person
from tests.fixtures.waiting import eventually
from tests.jobs.conftest import StartWorker
from tests.jobs.kinds import Steps
from tests.jobs.receiver import LOCAL, Receiver, register, settled

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

EXPORT = {"kind": "export.events", "args": {"format": "csv"}}
COUNT_DONE = "SELECT count(*) FROM jobs.jobs WHERE kind = 'export.events' AND state = 2"
# A good host, a bad one, and one whose clock is not set.
OFFSETS = [0.02, 1.0, -1.0, 300.0, -300.0]


class ShiftedClock(SystemClock):
    """The clock of a host, so many seconds ahead of the database's."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def now(self) -> datetime:
        return datetime.now(UTC) + timedelta(seconds=self._seconds)

    def timestamp(self) -> float:
        return time() + self._seconds


def shift(app: Lifespan, seconds: float) -> None:
    """Sets the clock of the API host, of which every part of the process has the same one."""
    clock, shifted = app._application.state.resources.clock, ShiftedClock(seconds)
    clock.now, clock.timestamp = shifted.now, shifted.timestamp


def brought_by_the_relay() -> float:
    return lost_ids() + (REGISTRY.get_sample_value("onehop_jobs_redispatched_total", {"reason": "due"}) or 0.0)


@pytest.mark.parametrize("offset", OFFSETS)
async def test_a_job_starts_at_once_whatever_the_clocks_of_its_hosts_say(
    person: Person, running_app: Lifespan, settings: Settings, connection: Connection, offset: float
) -> None:
    """Found by running it: 20 ms between API and database made every job start when the sweep found it."""
    shift(running_app, offset)
    queue = running_app._application.state.resources.queue
    async with open_worker(settings, JOB_KINDS, clock=ShiftedClock(-offset)):

        async def has_epoch() -> bool:
            return set(await queue.read_epochs()) == {str(await connection.fetchval("SELECT epoch FROM jobs.epoch"))}

        # The first relay of a new Redis brings all queued jobs there anew, one that comes meanwhile too.
        await eventually(has_epoch)
        moved = brought_by_the_relay()
        answer = await person.post("/v1/jobs", json=EXPORT)
        assert (answer.status_code, answer.json()["state"]) == (202, "queued")
        path = f"/v1/jobs/{answer.json()['id']}"

        async def has_succeeded() -> bool:
            return bool((await person.get(path)).json()["state"] == "succeeded")

        await eventually(has_succeeded)
        # It went the short way: neither a row that was early nor an id that was lost had to be found.
        assert brought_by_the_relay() == moved
        file = await person.get(f"{path}/artifacts/events.csv")
        assert file.status_code == 200
    kept = await connection.fetchval(
        "SELECT expires_at BETWEEN now() + interval '6.9 days' AND now() + interval '7 days' FROM jobs.artifacts"
    )
    assert kept


@pytest.mark.parametrize("offset", [300.0, -300.0])
async def test_a_time_that_a_user_gives_is_judged_by_the_database(
    person: Person, running_app: Lifespan, settings: Settings, connection: Connection, offset: float
) -> None:
    shift(running_app, offset)
    now: datetime = await connection.fetchval("SELECT now()")
    soon = (now + timedelta(seconds=5)).isoformat()
    async with open_worker(settings, JOB_KINDS, clock=ShiftedClock(-offset)):
        answer = await person.post("/v1/jobs", json=EXPORT | {"run_at": soon})
        past = await person.post("/v1/jobs", json=EXPORT | {"run_at": now.isoformat()})
        assert past.json()["state"] == "queued"

        async def both_are_done() -> bool:
            return bool(await connection.fetchval(COUNT_DONE) == 2)

        await eventually(both_are_done)
    assert answer.status_code == 202
    assert await connection.fetchval(
        "SELECT bool_and(started_at >= run_at) FROM jobs.jobs WHERE kind = 'export.events'"
    )


async def test_an_id_that_comes_too_early_is_put_back_with_its_time(
    start_worker: StartWorker, connection: Connection, steps: Steps
) -> None:
    """However an id got to Redis before its time, its job starts on time, without the sweep for lost ids."""
    worker = await start_worker()
    lost = lost_ids()
    early = Row(None, queue="bulk", seconds=5)
    async with connection.transaction():
        await insert(connection, [early])
        await connection.execute("UPDATE jobs.jobs SET dispatched_at = now(), is_due = true")
    await worker.redis.client.zadd("jobs:queue:bulk:0", {str(early.id): 0})
    await worker.redis.client.publish("jobs:wakeup", "")

    async def was_put_back() -> bool:
        return bool(await connection.fetchval("SELECT dispatched_at IS NULL AND NOT is_due FROM jobs.jobs"))

    await eventually(was_put_back)
    await eventually(lambda: steps.started == [early.id])
    assert await connection.fetchval("SELECT started_at >= run_at FROM jobs.jobs")
    assert lost_ids() == lost


@LOCAL
@pytest.mark.parametrize("offset", [600.0, -600.0])
async def test_a_webhook_carries_the_time_of_the_database(
    person: Person, running_app: Lifespan, receiver: Receiver, settings: Settings, offset: float
) -> None:
    """Receivers refuse what is more than five minutes off."""
    endpoint = await register(person, receiver.url)
    async with open_worker(settings, JOB_KINDS, clock=ShiftedClock(offset)):
        await person.post(f"/v1/webhooks/endpoints/{endpoint['id']}/test")
        await settled(person)
    headers, _ = receiver.requests[0]
    assert abs(int(headers["webhook-timestamp"]) - time()) < 100


async def test_an_idempotency_key_is_as_old_as_the_database_says(
    person: Person, running_app: Lifespan, connection: Connection
) -> None:
    """Of two API hosts, the one that is a day ahead must not take the other's keys for expired."""
    headers = {"Idempotency-Key": "one"}
    first = await person.post("/v1/jobs", json=EXPORT, headers=headers)
    clock = running_app._application.state.resources.clock
    kept = clock.now, clock.timestamp
    identity_now = ShiftedClock(25 * 3600.0)
    clock.now = identity_now.now
    try:
        again = await person.post("/v1/jobs", json=EXPORT, headers=headers)
    finally:
        clock.now, clock.timestamp = kept
    assert again.json()["id"] == first.json()["id"]
    assert again.headers["idempotent-replayed"] == "true"
    assert await connection.fetchval("SELECT count(*) FROM jobs.jobs WHERE kind = $1", EXPORT["kind"]) == 1
