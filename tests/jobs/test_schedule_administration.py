"""`/v1/admin/schedules` and `/v1/admin/workers`."""

import os
import socket
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from app import __version__
from app.jobs.service.scheduling import Schedule, run_schedules, store_schedules
from app.settings import Settings
from app.worker import Worker, open_worker
from tests.fixtures.clocks import ManualClock
from tests.fixtures.people import Person
from tests.fixtures.servers import Connection
from tests.fixtures.waiting import eventually
from tests.jobs.conftest import StartWorker
from tests.jobs.kinds import Producer, Steps, kinds_of

HOURLY = Schedule("hourly", "test.noop", "0 * * * *", args={"number": 5})


def start() -> datetime:
    """Half past an hour that is about now, because a schedule is resumed by the time of the database."""
    return datetime.now(UTC).replace(minute=30, second=0, microsecond=0)


async def shown(admin: Person) -> dict[str, Any]:
    (schedule,) = (await admin.get("/v1/admin/schedules")).json()["items"]
    return dict(schedule)


async def test_a_schedule_is_shown_with_its_next_and_newest_run(
    admin: Person, producer: Producer, steps: Steps, connection: Connection
) -> None:
    clock = ManualClock(start())
    assert (await admin.get("/v1/admin/schedules")).json() == {"items": [], "next_cursor": None}
    await store_schedules(producer.db, clock.now(), [HOURLY])
    schedule = await shown(admin)
    first = (start() + timedelta(minutes=30)).isoformat(timespec="microseconds").replace("+00:00", "Z")
    assert {name: schedule[name] for name in ("name", "kind", "cron", "timezone", "paused", "last_run")} == {
        "name": "hourly",
        "kind": "test.noop",
        "cron": "0 * * * *",
        "timezone": "UTC",
        "paused": False,
        "last_run": None,
    }
    assert datetime.fromisoformat(schedule["next_run_at"]) == datetime.fromisoformat(first)
    clock.advance(1800)
    assert await run_schedules(producer.db, producer.queue, clock.now(), kinds_of(steps)) == 1
    job_id = await connection.fetchval("SELECT id FROM jobs.jobs WHERE kind = 'test.noop'")
    run = (await shown(admin))["last_run"]
    assert (datetime.fromisoformat(run["at"]), run["job_id"], run["state"], run["finished_at"]) == (
        *(clock.now(), str(job_id), "queued"),
        None,
    )
    await connection.execute(
        "UPDATE jobs.jobs SET state = 2, finished_at = '2026-01-01T00:00:00Z' WHERE id = $1", job_id
    )
    run = (await shown(admin))["last_run"]
    assert (run["state"], run["finished_at"]) == ("succeeded", "2026-01-01T00:00:00Z")
    await connection.execute("DELETE FROM jobs.jobs")
    run = (await shown(admin))["last_run"]
    assert (run["job_id"], run["state"], run["finished_at"]) == (str(job_id), None, None)


async def test_a_paused_schedule_runs_in_no_worker_until_it_is_resumed(
    admin: Person, producer: Producer, steps: Steps, connection: Connection
) -> None:
    clock = ManualClock(start())
    await store_schedules(producer.db, clock.now(), [HOURLY])
    for _ in range(2):
        assert (await admin.post("/v1/admin/schedules/hourly/pause")).status_code == 204
    clock.advance(3 * 3600)
    # As a worker does that starts.
    await store_schedules(producer.db, clock.now(), [HOURLY])
    assert await run_schedules(producer.db, producer.queue, clock.now(), kinds_of(steps)) == 0
    schedule = await shown(admin)
    assert (schedule["paused"], schedule["next_run_at"]) == (True, None)
    assert (await admin.post("/v1/admin/schedules/hourly/resume")).status_code == 204
    schedule = await shown(admin)
    assert schedule["paused"] is False
    assert datetime.fromisoformat(schedule["next_run_at"]) > datetime.now(UTC)
    # Of the times that have passed none is caught up.
    assert await run_schedules(producer.db, producer.queue, datetime.now(UTC), kinds_of(steps)) == 0
    assert await connection.fetchval("SELECT count(*) FROM jobs.jobs WHERE kind = 'test.noop'") == 0
    answer = await admin.post("/v1/admin/schedules/daily/pause")
    assert (answer.status_code, answer.json()["code"]) == (404, "schedule_not_found")


async def test_a_schedule_runs_on_demand_once_at_a_time(
    admin: Person, producer: Producer, test_kinds: None, connection: Connection
) -> None:
    await store_schedules(producer.db, start(), [HOURLY])
    before = (await shown(admin))["next_run_at"]
    await admin.post("/v1/admin/schedules/hourly/pause")
    answers = [await admin.post("/v1/admin/schedules/hourly/run")]
    first = (await shown(admin))["last_run"]
    answers.append(await admin.post("/v1/admin/schedules/hourly/run"))
    # The second has begun no run.
    assert (await shown(admin))["last_run"] == first
    trail = (await admin.get("/v1/auth/security-events")).json()["items"]
    assert [event["action"] for event in trail].count("schedule_run") == 1
    assert [answer.status_code for answer in answers] == [202, 202]
    job = answers[0].json()["job"]
    assert job["id"] == answers[1].json()["job"]["id"]
    assert answers[0].headers["location"] == f"/v1/admin/jobs/{job['id']}"
    args = (await admin.get(f"/v1/admin/jobs/{job['id']}")).json()["args"]
    assert args.keys() == {"number", "scheduled_at"}
    assert first["job_id"] == job["id"]
    await connection.execute("UPDATE jobs.jobs SET state = 2, finished_at = now() WHERE id = $1", UUID(job["id"]))
    assert (await admin.post("/v1/admin/schedules/hourly/run")).json()["job"]["id"] != job["id"]
    await admin.post("/v1/admin/schedules/hourly/resume")
    assert (await shown(admin))["next_run_at"] >= before


async def test_workers_report_themselves_until_they_end(
    admin: Person, start_worker: StartWorker, connection: Connection
) -> None:
    await connection.execute(
        """
        INSERT INTO jobs.workers (worker_id, version, queues, slots, running, heartbeat_at)
        VALUES ('killed:1', '0.0.1', '{bulk}', 5, 2, now() - interval '1 hour'),
               ('killed:2', '0.0.1', '{bulk}', 5, 2, now() - interval '25 hours')
        """
    )

    async def workers() -> dict[str, Any]:
        return {item["id"]: item for item in (await admin.get("/v1/admin/workers")).json()["items"]}

    # Also while no other worker is there that forgets them.
    assert set(await workers()) == {"killed:1"}
    worker: Worker = await start_worker(slots=20, heartbeat=0.1)
    own = f"{socket.gethostname()}:{os.getpid()}"

    async def is_there() -> bool:
        return set(await workers()) == {"killed:1", own}

    await eventually(is_there)
    first = (await workers())[own]
    assert (first["version"], first["slots"], first["running"]) == (__version__, 20, 0)
    assert first["queues"] == sorted(worker.runner.queues)

    async def goes_on() -> bool:
        now = (await workers())[own]
        return bool(now["last_heartbeat_at"] > first["last_heartbeat_at"] and now["started_at"] == first["started_at"])

    await eventually(goes_on)


async def test_a_worker_that_ends_is_off_the_list(admin: Person, settings: Settings) -> None:
    async def count() -> int:
        return len((await admin.get("/v1/admin/workers")).json()["items"])

    async def is_there() -> bool:
        return await count() == 1

    async with open_worker(settings):
        await eventually(is_there)
    assert await count() == 0
