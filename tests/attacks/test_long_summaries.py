"""A summary reads no more than a request may, one at a time of a user, and costs what it reads."""

import asyncio
from datetime import UTC, datetime, timedelta

import orjson
import pytest
from fastapi import FastAPI

from app.kernel.errors import TooManyRequests
from app.kernel.fairness.turns import OneAtATime
from app.kernel.ids import UserId
from app.users import router
from app.users.api import summarise_events
from tests.fixtures.answers import problem_of
from tests.fixtures.people import Person
from tests.fixtures.servers import Connection

SUMMARY = "/v1/users/me/events/summary"
INSERT = """
    INSERT INTO users.events (user_id, id, kind, occurred_at, properties, created_at)
    SELECT $1, gen_random_uuid(), 'a', now() - $3::interval, '{}', now() - $3::interval FROM generate_series(1, $2)
"""
OLD = timedelta(days=10)


async def test_what_is_dear_runs_once_at_a_time_for_each_caller() -> None:
    turns = OneAtATime(max_wait=0.01)
    running: list[str] = []
    go_on = asyncio.Event()

    async def work(caller: str) -> None:
        async with turns.turn(caller):
            running.append(caller)
            await go_on.wait()

    async with asyncio.TaskGroup() as tasks:
        for caller in ("one", "other"):
            tasks.create_task(work(caller))
        await asyncio.sleep(0)
        assert running == ["one", "other"]
        with pytest.raises(TooManyRequests):
            await work("one")
        go_on.set()
    await work("one")
    assert running == ["one", "other", "one"]


async def test_a_request_reads_a_bounded_number_of_events_and_a_report_all(
    app: FastAPI, person: Person, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router, "MAX_SUMMARY_EVENTS", 100)
    await connection.execute(INSERT, person.id, 100, OLD)
    assert sum(item["count"] for item in (await person.get(SUMMARY)).json()["items"]) == 100
    await connection.execute(INSERT, person.id, 1, timedelta(0))
    until = datetime.now(UTC) + timedelta(minutes=1)
    since = (until - timedelta(days=20)).isoformat().replace("+00:00", "Z")
    answer = await person.get(f"{SUMMARY}?since={since}")
    assert problem_of(answer, 422, "validation_failed") == {"query:since": "invalid_period"}
    since = (until - timedelta(days=2)).isoformat().replace("+00:00", "Z")
    assert [item["count"] for item in (await person.get(f"{SUMMARY}?since={since}")).json()["items"]] == [1]
    resources = app.state.resources
    summary = await summarise_events(
        resources.db, resources.clock, UserId(person.id), bucket="day", since=until - timedelta(days=20), until=until
    )
    assert [item["count"] for item in orjson.loads(summary.items)] == [100, 1]


async def left(person: Person) -> int:
    answer = await person.patch("/v1/users/me", json={"display_name": "Ada"})
    assert answer.status_code == 200
    return int(answer.headers["ratelimit"].partition("r=")[2].partition(";")[0])


# A hundredth is on credit, which is all that these tests use: what is left changes by nothing else.
@pytest.mark.settings(APP_LIMITS_CALLER="5000")
async def test_a_summary_costs_a_unit_for_each_hundred_events(person: Person, connection: Connection) -> None:
    await connection.execute(INSERT, person.id, 2000, OLD)
    before = await left(person)
    assert (await person.get(SUMMARY)).status_code == 200
    assert before - await left(person) == 2000 // 100 + 1


@pytest.mark.settings(APP_LIMITS_CALLER="5000", APP_DATABASE_STATEMENT_TIMEOUT="0.3")
async def test_a_summary_that_takes_too_long_is_paid_for(person: Person, connection: Connection) -> None:
    await left(person)
    async with connection.transaction():
        await connection.execute("LOCK TABLE users.events")
        assert (await person.get(SUMMARY)).status_code == 503
    problem_of(await person.get(SUMMARY), 429, "quota_exceeded")
