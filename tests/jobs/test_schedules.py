"""Jobs by the clock: zones, daylight saving, missed times, and one job for each time, whichever worker leads."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

import asyncpg
import pytest

from app.jobs.records import DueSchedule
from app.jobs.service.scheduling import Schedule, due_times, next_time, run_schedules, store_schedules
from tests.fixtures.clocks import ManualClock
from tests.jobs.kinds import Producer, Steps, kinds_of

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("cron", "timezone", "after", "expected"),
    [
        ("0 8 * * *", "UTC", "2026-01-01T08:00:00", "2026-01-02T08:00:00"),
        ("0 8 * * *", "Europe/Berlin", "2026-01-01T00:00:00", "2026-01-01T07:00:00"),
        ("0 8 * * *", "Europe/Berlin", "2026-07-01T00:00:00", "2026-07-01T06:00:00"),
        ("0 8 * * MON", "America/New_York", "2026-03-07T00:00:00", "2026-03-09T12:00:00"),
        # 02:30 does not exist on this day; the job comes when the clock has gone forward.
        ("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00:00", "2026-03-29T01:00:00"),
        # 02:30 happens twice on this day; the job comes at the first of them, and then on the next day.
        ("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00:00", "2026-10-25T00:30:00"),
        ("30 2 * * *", "Europe/Berlin", "2026-10-25T00:30:00", "2026-10-26T01:30:00"),
    ],
)
def test_times_are_those_of_the_zone(cron: str, timezone: str, after: str, expected: str) -> None:
    assert next_time(cron, timezone, utc(after)) == utc(expected)


@pytest.mark.parametrize(
    ("catch_up", "now", "expected"),
    [
        ("none", "2026-01-01T03:00:30", ["2026-01-01T03:00:00"]),
        ("none", "2026-01-01T03:10:00", []),
        ("one", "2026-01-01T03:10:00", ["2026-01-01T03:00:00"]),
        ("all", "2026-01-01T03:10:00", ["2026-01-01T01:00:00", "2026-01-01T02:00:00", "2026-01-01T03:00:00"]),
    ],
)
def test_missed_times_are_caught_up_as_declared(catch_up: str, now: str, expected: list[str]) -> None:
    schedule = DueSchedule("s", "k", "{}", "0 * * * *", "UTC", catch_up, utc("2026-01-01T01:00:00"))
    assert due_times(schedule, utc(now)) == [utc(time) for time in expected]


async def test_each_time_makes_one_job_whoever_leads(producer: Producer, connection: Connection, steps: Steps) -> None:
    clock = ManualClock(utc("2026-01-01T00:30:00"))
    kinds = kinds_of(steps)
    hourly = Schedule("hourly", "test.noop", "0 * * * *", args={"number": 5})
    await store_schedules(producer.db, clock.now(), [hourly])

    async def step() -> int:
        return await run_schedules(producer.db, producer.queue, clock.now(), kinds)

    assert await step() == 0
    clock.advance(1800)
    assert sorted(await asyncio.gather(step(), step(), step())) == [0, 0, 1]
    assert await step() == 0
    clock.advance(5 * 3600)
    assert await step() == 1
    rows = await connection.fetch("SELECT args::text, unique_key FROM jobs.jobs WHERE kind = 'test.noop' ORDER BY id")
    assert [row["unique_key"] for row in rows] == [
        "hourly@2026-01-01T01:00:00+00:00",
        "hourly@2026-01-01T06:00:00+00:00",
    ]
    assert rows[0]["args"] == '{"number": 5, "scheduled_at": "2026-01-01T01:00:00+00:00"}'


async def test_a_changed_schedule_starts_afresh_and_a_removed_one_ends(
    producer: Producer, connection: Connection
) -> None:
    clock = ManualClock(utc("2026-01-01T00:30:00"))
    first = Schedule("one", "test.noop", "0 * * * *")
    await store_schedules(producer.db, clock.now(), [first, replace(first, name="two")])

    async def next_runs() -> dict[str, Any]:
        rows = await connection.fetch("SELECT name, next_run_at FROM jobs.schedules")
        return {row["name"]: row["next_run_at"] for row in rows}

    assert await next_runs() == {"one": utc("2026-01-01T01:00:00"), "two": utc("2026-01-01T01:00:00")}
    clock.advance(timedelta(hours=2).total_seconds())
    await store_schedules(producer.db, clock.now(), [first])
    assert await next_runs() == {"one": utc("2026-01-01T01:00:00")}
    await store_schedules(producer.db, clock.now(), [replace(first, cron="15 * * * *")])
    assert await next_runs() == {"one": utc("2026-01-01T03:15:00")}
