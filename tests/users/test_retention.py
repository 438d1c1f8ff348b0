"""Events are deleted once their time is over, by the first rule that fits their kind."""

from datetime import UTC, datetime
from typing import Any

import pytest

from app.jobs.api import JOB_KINDS
from app.jobs.queries.positions import set_position
from app.jobs.records.administration import Position
from app.kernel.database import Database
from app.settings import Settings, SettingsError, load_settings
from app.users.api import RetentionPosition, expire_events
from app.users.service import retention
from app.worker import open_worker
from tests.fixtures.people import MakePerson, Person
from tests.fixtures.servers import Connection
from tests.fixtures.waiting import eventually

SECRET = {"APP_SECRET_KEY": "k" * 32}
INSERT = """
INSERT INTO users.events (user_id, id, kind, occurred_at, properties, created_at)
SELECT $1, gen_random_uuid(), $2, now(), '{}', now() - make_interval(days => $3) FROM generate_series(1, $4::integer)
"""


def rules(text: str) -> Any:
    return load_settings(SECRET | {"APP_USERS_EVENT_RETENTION": text}).users.retention_rules


async def expire_all(db: Database, text: str) -> list[int]:
    """How many each statement has deleted."""
    counts: list[int] = []
    position: RetentionPosition | None = RetentionPosition.behind(None)
    while position is not None:
        deleted, position = await expire_events(db, rules(text), position)
        counts.append(deleted)
    return counts


async def kinds(connection: Connection, person: Person) -> list[str]:
    rows = await connection.fetch("SELECT kind FROM users.events WHERE user_id = $1 ORDER BY kind", person.id)
    return [row["kind"] for row in rows]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("", ["a.b", "a_b", "axb", "b", "page.new", "page.old"]),
        ("page.*=30", ["a.b", "a_b", "axb", "b", "page.new"]),
        ("page.*=30,*=365", ["a.b", "a_b", "axb", "b", "page.new"]),
        ("page.*=3650,*=30", ["page.new", "page.old"]),
        ("a_b=30", ["a.b", "axb", "b", "page.new", "page.old"]),
        ("*=1", []),
    ],
)
async def test_the_first_rule_that_fits_counts(
    db: Database, person: Person, connection: Connection, monkeypatch: pytest.MonkeyPatch, text: str, kept: list[str]
) -> None:
    for kind, days in {"page.old": 40, "page.new": 20, "a_b": 40, "axb": 40, "a.b": 40, "b": 40}.items():
        await connection.execute(INSERT, person.id, kind, days, 1)
    monkeypatch.setattr(retention, "_SCANNED", 2)
    assert sum(await expire_all(db, text)) == 6 - len(kept)
    assert await kinds(connection, person) == kept


async def test_all_users_are_looked_at_page_by_page(
    db: Database, make_person: MakePerson, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "_USERS", 2)
    people = [await make_person() for _ in range(5)]
    for person in people:
        await connection.execute(INSERT, person.id, "old", 40, 3)
        await connection.execute(INSERT, person.id, "new", 4, 1)
    assert (await people[0].get("/v1/users/me/events")).json()["items"][1]["kind"] == "old"
    assert await expire_all(db, "*=30") == [6, 6, 3]
    assert [await kinds(connection, person) for person in people] == [["new"]] * 5
    # Nor does the cache show them any more.
    assert [item["kind"] for item in (await people[0].get("/v1/users/me/events")).json()["items"]] == ["new"]


async def test_old_events_that_are_kept_are_read_once_and_a_bounded_part_at_a_time(
    db: Database, make_person: MakePerson, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest first: those that have expired lie behind all that are kept, which were stored at one moment."""
    monkeypatch.setattr(retention, "_SCANNED", 4)
    people = sorted([await make_person() for _ in range(2)], key=lambda person: person.id)
    for person in people:
        await connection.execute(INSERT, person.id, "kept", 40, 9)
        await connection.execute(INSERT, person.id, "old", 50, 1)
    # Ten events of each: 4, 4, 2 + 2, 4, 4, and nothing is left.
    assert await expire_all(db, "old=30") == [0, 0, 1, 0, 1, 0]
    assert [await kinds(connection, person) for person in people] == [["kept"] * 9] * 2


@pytest.mark.settings(APP_USERS_EVENT_RETENTION="old=30")
async def test_the_job_goes_on_behind_the_last_user_it_was_done_with(
    settings: Settings, make_person: MakePerson, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "_SCANNED", 2)
    done, half_done, last = sorted([await make_person() for _ in range(3)], key=lambda person: person.id)
    for person in (done, half_done, last):
        await connection.execute(INSERT, person.id, "old", 40, 3)
    reached = RetentionPosition(half_done.id, datetime.now(UTC), half_done.id).last_user_done
    async with open_worker(settings, JOB_KINDS) as worker:
        async with worker.db.transaction("test.enqueue") as tx:
            job_id = await worker.queue.enqueue(tx, "users.expire_events", {}, user_id=None, queue="bulk")
            await set_position(tx, job_id, Position(reached, 7, 0, 0))

        async def is_over() -> bool:
            result = await connection.fetchval("SELECT result::text FROM jobs.jobs WHERE id = $1", job_id)
            return bool(result == '{"events": 13}')

        await eventually(is_over)
    assert [await kinds(connection, person) for person in (done, half_done, last)] == [["old"] * 3, [], []]


@pytest.mark.settings(APP_USERS_EVENT_RETENTION="old=30")
async def test_the_job_of_the_schedule_follows_the_settings(
    settings: Settings, person: Person, connection: Connection
) -> None:
    await connection.execute(INSERT, person.id, "old", 40, 2)
    async with open_worker(settings, JOB_KINDS) as worker:
        async with worker.db.statement("test.enqueue") as tx:
            job_id = await worker.queue.enqueue(tx, "users.expire_events", {}, user_id=None, queue="bulk")

        async def is_over() -> bool:
            result = await connection.fetchval("SELECT result::text FROM jobs.jobs WHERE id = $1", job_id)
            return bool(result == '{"events": 2}')

        await eventually(is_over)
    schedules = await connection.fetch("SELECT name FROM jobs.schedules")
    assert "users.expire_events" in {row["name"] for row in schedules}


@pytest.mark.parametrize("text", ["page.*", "page.*=0", "page.*=x", "Page=3", "=3", "a=1;b=2", "a=-1"])
def test_a_rule_that_makes_no_sense_is_refused_at_the_start(text: str) -> None:
    with pytest.raises(SettingsError, match="APP_USERS_EVENT_RETENTION"):
        load_settings(SECRET | {"APP_USERS_EVENT_RETENTION": text})
