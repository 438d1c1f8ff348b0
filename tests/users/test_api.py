"""What other modules use: `app.users.api`."""

import csv
import json
from datetime import UTC, datetime, timedelta

import pytest

from app.kernel.cache import FORGET_TOPIC
from app.kernel.database import Database
from app.kernel.http import dump_json
from app.kernel.ids import UserId, new_id
from app.users import api
from app.users.errors import UserNotFound
from app.users.records import NewEvent, Preferences, User
from app.users.service import record_events
from tests.fixtures.application import Budget
from tests.fixtures.clocks import ManualClock
from tests.fixtures.servers import Connection

pytestmark = pytest.mark.smoke

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


async def make_user(db: Database) -> User:
    async with db.statement("test") as tx:
        return await api.create_user(
            tx,
            user_id=UserId(new_id()),
            email="ada@example.com",
            display_name="Ada",
            locale="en",
            timezone="UTC",
            email_verified=True,
        )


async def make_events(db: Database, user: User, count: int) -> None:
    """One event a day, the newest now."""
    days = [NOW - timedelta(days=count - 1 - index) for index in range(count)]
    async with db.statement("test") as tx:
        events = [NewEvent(f"k{i}", day, f'{{"text": "a,\\"b{i}"}}') for i, day in enumerate(days)]
        await record_events(tx, ManualClock(NOW), user.id, events)


async def test_create_user_makes_both_rows_in_one_statement(db: Database, budget: Budget) -> None:
    with budget(1):
        user = await make_user(db)
    async with db.read("test") as conn:
        assert await api.get_user(conn, user.id) == user
        exported = await api.export_user(conn, user.id)
    assert (user.email, user.email_verified, user.display_name, user.version) == (
        "ada@example.com",
        True,
        "Ada",
        1,
    )
    assert exported == api.UserExport(user, Preferences("system", "en", True, False, "{}", 1))


async def test_nobody_is_nobody(db: Database) -> None:
    absent = UserId(new_id())
    async with db.read("test") as conn:
        assert await api.get_user(conn, absent) is None
        assert await api.export_user(conn, absent) is None
        assert await api.list_overviews(conn, [absent]) == {}
        assert await api.count_events(conn, absent, None, None) == 0
    for change in (api.anonymise_user, lambda tx, who: api.set_email(tx, who, "x@example.com", verified=True)):
        with pytest.raises(UserNotFound):
            async with db.statement("test") as tx:
                await change(tx, absent)


async def test_overview_is_one_statement(db: Database, budget: Budget) -> None:
    user, other = await make_user(db), await make_user(db)
    await make_events(db, user, 12)
    with budget(1):
        async with db.read("test") as conn:
            parts = await api.list_overviews(conn, [user.id, UserId(new_id()), other.id])
    assert set(parts) == {user.id, other.id}
    part = parts[user.id]
    assert json.loads(part.user) == json.loads(dump_json(user.view()))
    preferences = {"theme": "system", "language": "en", "email_notifications": True, "weekly_report": False}
    assert json.loads(part.preferences) == preferences | {"extra": {}}
    events = json.loads(part.recent_events)
    assert [event["kind"] for event in events] == [f"k{i}" for i in range(11, 1, -1)]
    assert [datetime.fromisoformat(event["occurred_at"]) for event in events] == [
        NOW - timedelta(days=i) for i in range(10)
    ]
    assert (json.loads(parts[other.id].user)["id"], parts[other.id].recent_events) == (str(other.id), "[]")


async def test_set_email_reaches_the_profile_and_the_cache(db: Database) -> None:
    user = await make_user(db)
    forgotten: list[str] = []

    async def note(tags: list[str]) -> None:
        forgotten.extend(tags)

    db.on_commit(FORGET_TOPIC, note)
    async with db.statement("test") as tx:
        await api.set_email(tx, user.id, "new@example.com", verified=False)
    async with db.read("test") as conn:
        changed = await api.get_user(conn, user.id)
    assert changed is not None
    assert (changed.email, changed.email_verified, changed.version) == ("new@example.com", False, 2)
    assert forgotten == [api.profile_tag(user.id)] == [f"user:{user.id}"]


async def test_anonymising_forgets_who_it_was(db: Database, connection: Connection) -> None:
    user, other = await make_user(db), await make_user(db)
    for _ in range(2):
        async with db.statement("test") as tx:
            await api.anonymise_user(tx, user.id)
    async with db.read("test") as conn:
        assert await api.get_user(conn, user.id) is None
        assert await api.list_overviews(conn, [user.id]) == {}
        assert await api.get_user(conn, other.id) == other
    row = await connection.fetchrow(
        "SELECT email, display_name, bio, avatar_url, locale, timezone, deleted_at IS NULL AS is_alive"
        " FROM users.users WHERE id = $1",
        user.id,
    )
    assert row is not None
    assert tuple(row) == (f"deleted-{user.id}@users.invalid", None, None, None, "en", "UTC", False)


async def test_events_are_deleted_bit_by_bit(db: Database, connection: Connection) -> None:
    user, other = await make_user(db), await make_user(db)
    await make_events(db, user, 12)
    await make_events(db, other, 3)
    deleted: list[int] = []
    while not deleted or deleted[-1]:
        async with db.statement("test") as tx:
            deleted.append(await api.delete_events(tx, user.id, 5))
    assert deleted == [5, 5, 2, 0]
    assert await connection.fetchval("SELECT count(*) FROM users.events") == 3


async def test_events_stream_as_csv(db: Database) -> None:
    user = await make_user(db)
    await make_events(db, user, 5)
    await make_events(db, await make_user(db), 1)
    pieces: list[bytes] = []

    async def output(piece: bytes) -> None:
        pieces.append(piece)

    since, until = NOW - timedelta(days=3), NOW
    async with db.snapshot("test") as conn:
        assert await api.count_events(conn, user.id, None, None) == 5
        assert await api.count_events(conn, user.id, since, until) == 3
        assert await api.stream_events(conn, user.id, since, until, output) == 3
    header, *rows = csv.reader(b"".join(pieces).decode().splitlines())
    assert header == ["id", "kind", "occurred_at", "properties", "created_at"]
    assert [row[1] for row in rows] == ["k1", "k2", "k3"]
    assert [row[2] for row in rows] == [f"2026-11-{day}T12:00:00.000000Z" for day in (19, 20, 21)]
    assert [row[3] for row in rows] == [f'{{"text": "a,\\"b{i}"}}' for i in (1, 2, 3)]
    async with db.snapshot("test") as conn:
        assert await api.stream_events(conn, user.id, None, None, output) == 5
