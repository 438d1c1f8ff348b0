"""The stream of a user's events: each once, as soon as it is committed, whatever comes in between."""

import asyncio
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import orjson
import pytest
from fastapi import FastAPI

from app.kernel.database import Database
from app.kernel.ids import UserId, new_id
from app.users.records import StreamPosition
from app.users.service import streaming
from tests.fixtures.application import Lifespan
from tests.fixtures.people import MakePerson, Person
from tests.fixtures.servers import Connection
from tests.fixtures.streams import open_stream
from tests.fixtures.waiting import eventually
from tests.users.test_events import pages, record

STREAM = "/v1/users/me/events/stream"
INSERT = """
INSERT INTO users.events (user_id, id, kind, occurred_at, properties, created_at)
SELECT $1, i, 'a', now(), '{}', now() + make_interval(secs => $3) FROM unnest($2::uuid[]) AS i
"""


async def store(connection: Connection, person: Person, count: int = 1, *, seconds: float = 0) -> list[str]:
    """Events of one transaction, stored as long ago as `seconds` are negative."""
    ids = [new_id() for _ in range(count)]
    await connection.execute(INSERT, person.id, ids, seconds)
    return [str(event_id) for event_id in ids]


async def resumed(app: Lifespan, person: Person, last_id: str, count: int) -> list[str]:
    """The ids of the next events behind one, of a new stream."""
    async with open_stream(app, STREAM, person.headers | {"Last-Event-ID": last_id}) as stream:
        return [event["id"] for event in await stream.until(count)]


async def test_events_come_as_they_are_stored_and_only_the_own_ones(
    running_app: Lifespan, person: Person, make_person: MakePerson
) -> None:
    other = await make_person()
    await record(person, "before")
    async with open_stream(running_app, STREAM, person.headers) as stream:
        assert stream.status == 200
        await record(other, "of.another")
        ids = await record(person, "a", "b", "c")
        events = await stream.until(3)
    assert [event["id"] for event in events] == ids
    assert {event["event"] for event in events} == {"event"}
    assert [block.get("retry") for block in stream.blocks] == ["1000", None, None, None]
    listed = await pages(person, limit=100)
    assert [orjson.loads(event["data"]) for event in events] == listed[::-1][1:]
    async with open_stream(
        running_app, f"{STREAM}?kind=b", person.headers | {"Last-Event-ID": listed[-1]["id"]}
    ) as stream:
        await record(person, "c", "b")
        assert [orjson.loads(event["data"])["kind"] for event in await stream.until(2)] == ["b", "b"]


async def test_an_event_that_is_committed_late_comes_once_and_before_no_reconnect_is_lost(
    running_app: Lifespan, person: Person, connection: Connection, database_url: str
) -> None:
    slow = await asyncpg.connect(database_url)
    transaction = slow.transaction()
    await transaction.start()
    late = await store(slow, person)
    async with open_stream(running_app, STREAM, person.headers) as stream:
        quick = await store(connection, person)
        # Not before the other one, which has begun earlier, has ended; nothing tells the process of either.
        await transaction.commit()
        assert [event["id"] for event in await stream.until(2)] == late + quick
    await slow.close()
    behind = await store(connection, person)
    assert await resumed(running_app, person, quick[0], 1) == behind
    assert await resumed(running_app, person, late[0], 2) == quick + behind


async def test_no_gap_opens_for_a_client_that_has_received_no_event(
    running_app: Lifespan, person: Person, connection: Connection, database_url: str
) -> None:
    """The server ends the stream as a restart does, and events are stored before the client is back."""
    await record(person, "a")
    draining = running_app._state["draining"] = asyncio.Event()
    slow = await asyncpg.connect(database_url)
    transaction = slow.transaction()
    await transaction.start()
    late = await store(slow, person)
    async with open_stream(running_app, f"{STREAM}?kind=b", person.headers) as stream:
        await eventually(lambda: stream.last_id is not None)
        draining.set()
        (event,) = await stream.until(1)
    assert (event["event"], event["id"], stream.blocks[0]["id"]) == ("shutdown", stream.last_id, stream.last_id)
    del running_app._state["draining"]
    await transaction.commit()
    await slow.close()
    behind = await store(connection, person)
    assert stream.last_id is not None
    assert await resumed(running_app, person, stream.last_id, 2) == late + behind


async def test_the_id_of_a_stream_of_one_kind_advances_over_events_of_others(
    running_app: Lifespan, person: Person
) -> None:
    async with open_stream(running_app, f"{STREAM}?kind=b", person.headers) as stream:
        ids = await record(person, "a", "b", "a")
        await eventually(lambda: stream.last_id == ids[-1])
        assert [event["id"] for event in stream.events] == [ids[1]]
    behind = await record(person, "c")
    assert await resumed(running_app, person, ids[-1], 1) == behind


async def test_the_mark_of_a_time_before_a_restore_names_no_transaction(db: Database, person: Person) -> None:
    user_id = UserId(person.id)
    start = await streaming.find_start(db, user_id, None)
    mark = start.mark()
    moment = start.created_at.replace(microsecond=start.created_at.microsecond // 1000 * 1000)
    assert await streaming.find_start(db, user_id, mark) == StreamPosition(moment, start.xid, UUID(int=0))
    of_the_restored = await streaming.find_start(db, user_id, mark, start.created_at)
    # Nor does one of a transaction that has not begun.
    of_the_future = await streaming.find_start(db, user_id, UUID(int=mark.int + 1_000_000_000))
    assert of_the_restored == of_the_future == StreamPosition(moment, "2", UUID(int=0))


@pytest.mark.parametrize(
    "last_id",
    ["ffffffff-ffff-7fff-bfff-ffffffffffff", "ffffffff-ffff-8fff-bfff-ffffffffffff", str(UUID(int=7 << 76 | 2 << 62))],
)
async def test_an_id_of_an_impossible_time_is_one_of_now_or_of_the_beginning(
    running_app: Lifespan, person: Person, connection: Connection, last_id: str
) -> None:
    stored = await store(connection, person)
    assert await resumed(running_app, person, last_id, 1) == stored


async def test_a_backlog_is_read_by_parts_and_each_event_comes_once_from_wherever_it_is_resumed(
    running_app: Lifespan, person: Person, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transactions of many events and of one, minutes apart and at one moment, and times against the order."""
    monkeypatch.setattr(streaming, "_BATCH", 4)
    monkeypatch.setattr(streaming, "_SCANNED", 3)
    stored: list[str] = []
    for seconds, count in ((-9000, 1), (-8000, 30), (-8000, 9), (-500, 1), (-530, 2), (-470, 3), (-100, 7), (-5, 1)):
        stored += await store(connection, person, count, seconds=seconds)
    for index in (0, 5, 30, 39, 40, 42, 45, 52):
        assert await resumed(running_app, person, stored[index], len(stored) - index - 1) == stored[index + 1 :]
    # Of one that was deleted the id tells the time; this is older than all.
    unknown = str(UUID(int=0x0190_0000_0000_7000_8000_0000_0000_0000))
    assert await resumed(running_app, person, unknown, len(stored)) == stored


async def test_a_stream_ends_with_its_token(running_app: Lifespan, person: Person, app: FastAPI) -> None:
    async with open_stream(running_app, STREAM, person.headers) as stream:
        assert (await person.post("/v1/auth/logout")).status_code == 204
        watch = app.state.event_watch
        # As an event wakes it.
        watch._wake([f"events:{person.id}"])
        await eventually(lambda: len(watch.open_streams) == 0)
    assert stream.events == []


async def test_streams_of_a_user_are_bounded_and_refused_with_a_status(
    running_app: Lifespan, person: Person, make_person: MakePerson, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app.state.event_watch.open_streams, "_most_of_one", 1)
    other = await make_person()
    async with open_stream(running_app, STREAM, person.headers):
        answer: Any = await person.get(STREAM)
        assert (answer.status_code, answer.json()["code"]) == (429, "too_many_event_streams")
        async with open_stream(running_app, STREAM, other.headers) as stream:
            assert stream.status == 200
    ids = ("x", "ffffffff-ffff-ffff-ffff-ffffffffffff", str(UUID(int=0)), str(uuid4()))
    for query, headers in (("?kind=A", {}), ("?kinds=a", {}), *(("", {"Last-Event-ID": last_id}) for last_id in ids)):
        assert (await person.get(STREAM + query, headers=headers)).status_code == 422
    assert len(app.state.event_watch.open_streams) == 0
