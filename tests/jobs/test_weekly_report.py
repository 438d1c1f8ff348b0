"""The weekly report: which users get one, for which week, once."""

import io
from datetime import UTC, datetime, timedelta
from email import message_from_bytes, policy
from email.message import EmailMessage
from functools import partial
from typing import Any, TypeAlias
from uuid import UUID

import asyncpg
import httpx
import orjson
import pytest
from pypdf import PdfReader

from app.composition import make_resources
from app.jobs.api import JOB_KINDS, SCHEDULES
from app.jobs.handlers.report_weekly import PAGE, past_week
from app.jobs.service.scheduling import next_time
from app.settings import Settings
from app.worker import open_worker
from tests.fixtures.clocks import ManualClock
from tests.fixtures.people import MakePerson, Person
from tests.fixtures.waiting import eventually
from tests.jobs.kinds import Producer

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> ManualClock:
    """The clock of the application and the worker; a test names this fixture before `client`."""
    clock = ManualClock(datetime.now(UTC))
    for program in ("app.main", "app.worker"):
        monkeypatch.setattr(f"{program}.make_resources", partial(make_resources, clock=clock))
    return clock


MONDAY = "2026-03-09T06:00:00+00:00"
WEEK = {"since": "2026-03-02T00:00:00+00:00", "until": "2026-03-09T00:00:00+00:00", "mail": True}


async def run_weekly(producer: Producer) -> None:
    async with producer.db.transaction("test.weekly") as tx:
        await producer.queue.enqueue(tx, "report.weekly", {"scheduled_at": MONDAY}, user_id=None, queue="bulk")


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
    (mail,) = (mail for mail in mails_in(settings) if mail["Subject"] == "Your week on Onehop")
    assert mail["To"] == person.email
    assert mail["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    link = mail["List-Unsubscribe"].strip("<>")
    assert link.startswith(f"{settings.base_url}/unsubscribe?token=")
    assert {link in part.get_content() for part in mail.walk() if part.get_content_maintype() == "text"} == {True}
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


async def unsubscribe_link(person: Person, producer: Producer, settings: Settings, connection: Connection) -> str:
    """The path of the link in a weekly report of this person."""
    await connection.execute("UPDATE users.users SET email_verified = true WHERE id = $1", person.id)
    await wants_reports(person)
    await connection.execute("DELETE FROM jobs.jobs")
    async with open_worker(settings, JOB_KINDS):
        await run_weekly(producer)
        assert await ended(connection, "report.email", 1) == [{"sent": True}]
    (mail,) = mails_in(settings)
    return str(mail["List-Unsubscribe"]).strip("<>").removeprefix(settings.base_url)


def mails_in(settings: Settings) -> list[EmailMessage]:
    files = (settings.data_dir / "mailbox").glob("*.eml")
    return [message_from_bytes(file.read_bytes(), policy=policy.default) for file in files]


WEEKLY = "SELECT weekly_report FROM users.preferences WHERE user_id = $1"
TRAIL = "SELECT actor_id FROM identity.security_events WHERE user_id = $1 AND action = 'weekly_report_unsubscribed'"
ONE_CLICK = {"List-Unsubscribe": "One-Click"}


async def test_one_click_ends_the_weekly_report(
    clock: ManualClock,
    client: httpx.AsyncClient,
    person: Person,
    make_person: MakePerson,
    producer: Producer,
    settings: Settings,
    connection: Connection,
) -> None:
    link = await unsubscribe_link(person, producer, settings, connection)
    other = await make_person()
    await wants_reports(other)
    assert (await person.get("/v1/users/me/preferences")).json()["weekly_report"] is True

    # Scanners open links: nothing happens by GET. The button is a form of HTML, which needs no script.
    page = await client.get(link)
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert '<form method="post"><button>' in page.text
    assert "<script" not in page.text
    assert "form-action 'self'" in page.headers["content-security-policy"]
    assert (await client.head(link)).status_code == 200
    assert await connection.fetchval(WEEKLY, person.id) is True

    middle = len(link) // 2
    forged = link[:middle] + ("A" if link[middle] != "A" else "B") + link[middle + 1 :]
    for wrong in (forged, link[:-8], "/unsubscribe", "/unsubscribe?token=%C3%A9"):
        refused = await client.post(wrong, data=ONE_CLICK)
        assert (refused.status_code, refused.headers["content-type"]) == (400, "text/html; charset=utf-8"), wrong
    assert await connection.fetchval(WEEKLY, person.id) is True

    # As a mail provider does it, and again: one entry in the trail, and the cached answer is forgotten.
    for _ in range(2):
        done = await client.post(link, data=ONE_CLICK)
        assert (done.status_code, done.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert "location" not in done.headers
    assert (await person.get("/v1/users/me/preferences")).json()["weekly_report"] is False
    assert [row["actor_id"] for row in await connection.fetch(TRAIL, person.id)] == [person.id]
    assert await connection.fetchval(WEEKLY, other.id) is True

    # A multipart body is as good as none (RFC 8058, section 3.2), and the link works until it expires.
    await wants_reports(person)
    assert (await client.post(link, files={"List-Unsubscribe": (None, "One-Click")})).status_code == 200
    assert await connection.fetchval(WEEKLY, person.id) is False
    await wants_reports(person)
    clock.advance(timedelta(days=90, hours=1).total_seconds())
    assert (await client.post(link, data=ONE_CLICK)).status_code == 410
    assert await connection.fetchval(WEEKLY, person.id) is True


async def test_the_link_is_good_for_the_address_it_went_to(
    client: httpx.AsyncClient, person: Person, producer: Producer, settings: Settings, connection: Connection
) -> None:
    link = await unsubscribe_link(person, producer, settings, connection)
    await connection.execute(
        "UPDATE identity.accounts SET email = 'n@example.com', email_canonical = 'n@example.com' WHERE user_id = $1",
        person.id,
    )
    assert (await client.post(link, data=ONE_CLICK)).status_code == 400
    assert await connection.fetchval(WEEKLY, person.id) is True


async def test_a_report_that_was_asked_for_has_no_such_link_and_a_weekly_one_comes_no_more_once_it_is_off(
    person: Person, producer: Producer, settings: Settings, connection: Connection
) -> None:
    """Though the person gives it the key of the schedule's own."""
    await connection.execute("UPDATE users.users SET email_verified = true WHERE id = $1", person.id)
    asked = {"kind": "report.activity", "args": WEEK, "unique_key": "weekly:2026-W10"}
    assert (await person.post("/v1/jobs", json=asked)).status_code == 202
    async with open_worker(settings, JOB_KINDS):
        assert await ended(connection, "report.email", 1) == [{"sent": True}]
        (mail,) = mails_in(settings)
        assert {"List-Unsubscribe", "List-Unsubscribe-Post"}.isdisjoint(mail.keys())
        assert "unsubscribe" not in mail.as_string()
        await connection.execute("DELETE FROM jobs.jobs")
        await connection.execute("INSERT INTO jobs.lanes (lane, paused_at) VALUES ('default', now())")
        await wants_reports(person)
        await run_weekly(producer)
        await ended(connection, "report.activity", 1)
        await person.patch("/v1/users/me/preferences", json={"weekly_report": False})
        await connection.execute("DELETE FROM jobs.lanes")
        assert await ended(connection, "report.email", 1) == [{"sent": False}]
