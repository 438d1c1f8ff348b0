"""The weekly report: who gets one, for which week, once."""

import io
from datetime import UTC, datetime
from email import message_from_bytes, policy
from typing import Any, TypeAlias
from uuid import UUID

import asyncpg
import orjson
import pytest
from pypdf import PdfReader

from app.jobs.api import JOB_KINDS, SCHEDULES
from app.jobs.handlers.report_weekly import PAGE, past_week
from app.jobs.service.scheduling import next_time
from app.settings import Settings
from app.worker import open_worker
from tests.fixtures.people import MakePerson, Person
from tests.fixtures.waiting import eventually
from tests.jobs.kinds import Producer

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

MONDAY = "2026-03-09T06:00:00+00:00"
WEEK = {"since": "2026-03-02T00:00:00+00:00", "until": "2026-03-09T00:00:00+00:00", "mail": True}


async def run_weekly(producer: Producer) -> None:
    async with producer.db.transaction("test.weekly") as tx:
        await producer.queue.enqueue(tx, "report.weekly", {"scheduled_at": MONDAY}, user_id=None, lane="bulk")


async def ended(connection: Connection, kind: str, count: int) -> list[dict[str, Any]]:
    """The results of `count` jobs of a kind, once all have succeeded."""

    async def are_done() -> bool:
        found = await connection.fetchval("SELECT count(*) FROM jobs.jobs WHERE kind = $1 AND state = 2", kind)
        return bool(found == count)

    await eventually(are_done)
    rows = await connection.fetch("SELECT result::text FROM jobs.jobs WHERE kind = $1 ORDER BY id", kind)
    return [orjson.loads(row["result"]) for row in rows]


async def wants_reports(person: Person, **preferences: bool) -> UUID:
    answer = await person.patch("/v1/users/me/preferences", json={"weekly_report": True} | preferences)
    assert answer.status_code == 200
    return person.id


@pytest.mark.parametrize(
    ("now", "since"),
    [
        (datetime(2026, 3, 9, 6, tzinfo=UTC), datetime(2026, 3, 2, tzinfo=UTC)),
        (datetime(2026, 3, 15, 23, tzinfo=UTC), datetime(2026, 3, 2, tzinfo=UTC)),
        (datetime(2027, 1, 4, 6, tzinfo=UTC), datetime(2026, 12, 28, tzinfo=UTC)),
    ],
)
def test_the_week_is_the_last_whole_one(now: datetime, since: datetime) -> None:
    assert past_week(now)[0] == since
    assert (past_week(now)[1] - since).days == 7


def test_it_comes_on_mondays() -> None:
    (schedule,) = (schedule for schedule in SCHEDULES if schedule.name == "report.weekly")
    assert (schedule.kind, schedule.timezone, schedule.catch_up) == ("report.weekly", "UTC", "one")
    after = datetime(2026, 3, 3, tzinfo=UTC)
    assert next_time(schedule.cron, schedule.timezone, after) == datetime(2026, 3, 9, 6, tzinfo=UTC)


async def test_the_report_goes_to_who_wants_e_mail(
    person: Person, make_person: MakePerson, producer: Producer, settings: Settings, connection: Connection
) -> None:
    silent, unverified, uninterested = [await make_person() for _ in range(3)]
    wanting = [
        await wants_reports(person),
        await wants_reports(silent, email_notifications=False),
        await wants_reports(unverified),
    ]
    await connection.execute("UPDATE users.users SET email_verified = true WHERE id <> $1", unverified.id)
    await connection.execute("DELETE FROM jobs.jobs")
    await connection.execute(
        """
        INSERT INTO users.events (user_id, id, kind, occurred_at, properties)
        SELECT $1, gen_random_uuid(), 'page.viewed', '2026-03-08T23:59:00Z', '{}' FROM generate_series(1, 7)
        """,
        person.id,
    )
    async with open_worker(settings, JOB_KINDS):
        await run_weekly(producer)
        sent = await ended(connection, "report.email", 3)
    rows = await connection.fetch(
        "SELECT user_id, args::text, result::text, unique_key FROM jobs.jobs WHERE kind = 'report.activity'"
    )
    assert {row["user_id"] for row in rows} == set(wanting)
    assert uninterested.id not in wanting
    assert all(orjson.loads(row["args"]) == WEEK and row["unique_key"] == "weekly:2026-W10" for row in rows)
    assert {row["user_id"]: orjson.loads(row["result"])["events"] for row in rows}[person.id] == 7
    assert sorted(result["sent"] for result in sent) == [False, False, True]
    mails = [
        message_from_bytes(file.read_bytes(), policy=policy.default)
        for file in (settings.data_dir / "mailbox").glob("*.eml")
    ]
    (mail,) = (mail for mail in mails if mail["Subject"] == "Your week on Onehop")
    assert mail["To"] == person.email
    (attachment,) = mail.iter_attachments()
    assert attachment.get_filename() == "activity.pdf"
    text = "".join(page.extract_text() for page in PdfReader(io.BytesIO(attachment.get_content())).pages)
    assert "2026-03-02" in text
    assert "2026-03-08" in text


async def test_pages_follow_each_other_and_nobody_is_left_out_or_served_twice(
    producer: Producer, settings: Settings, connection: Connection
) -> None:
    await connection.execute(
        """
        WITH made AS (
            INSERT INTO users.users (id, email, email_verified, locale, timezone)
            SELECT gen_random_uuid(), 'p' || n || '@example.org', true, 'en', 'UTC' FROM generate_series(1, $1) AS n
            RETURNING id
        )
        INSERT INTO users.preferences (user_id, weekly_report) SELECT id, true FROM made
        """,
        PAGE + 2,
    )
    gone = await connection.fetchval(
        """
        UPDATE users.users SET deleted_at = now()
        WHERE id = (SELECT max(id::text)::uuid FROM users.users) RETURNING id
        """
    )
    await connection.execute("INSERT INTO jobs.lanes (lane, paused_at) VALUES ('pdf', now())")
    async with open_worker(settings, JOB_KINDS):
        await run_weekly(producer)
        assert await ended(connection, "report.weekly", 2) == [{"reports": PAGE}, {"reports": 1}]
    rows = await connection.fetch("SELECT user_id FROM jobs.jobs WHERE kind = 'report.activity'")
    assert len(rows) == len({row["user_id"] for row in rows}) == PAGE + 1
    assert gone not in {row["user_id"] for row in rows}
