"""Streams of a user with very many events take a bounded part of the database, however many of them there are."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from contextlib import aclosing
from itertools import pairwise
from time import monotonic
from typing import Any

import pytest
from fastapi import FastAPI

from app.kernel.auth import InvalidToken
from app.kernel.database import Database
from app.kernel.ids import UserId
from app.users.queries import event_stream
from app.users.service import streaming
from tests.fixtures.people import MakePerson, Person
from tests.fixtures.waiting import eventually

LOOK_SECONDS = 0.1


class Looks:
    """Notes each look at the events, which takes as long as one at very many of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.under_way: Counter[UserId] = Counter()
        self.most: Counter[UserId] = Counter()
        self.times: dict[UserId, list[tuple[float, float]]] = {}
        self._look = event_stream.list_streamed_events
        monkeypatch.setattr(event_stream, "list_streamed_events", self.look)

    async def look(self, conn: Any, user_id: UserId, *args: Any, **options: Any) -> Sequence[Any]:
        started = monotonic()
        self.under_way[user_id] += 1
        self.most[user_id] = max(self.most[user_id], self.under_way[user_id])
        await asyncio.sleep(LOOK_SECONDS)
        try:
            return await self._look(conn, user_id, *args, **options)
        finally:
            self.under_way[user_id] -= 1
            self.times.setdefault(user_id, []).append((started, monotonic()))


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    return Looks(monkeypatch)


async def follow(app: FastAPI, db: Database, user_id: UserId) -> None:
    async def is_welcome() -> None: ...

    start = await streaming.find_start(db, user_id, None)
    events = streaming.follow_events(db, app.state.event_watch, user_id, start, before_each=is_welcome)
    async with aclosing(events):  # type: ignore[type-var]  # it is a generator
        async for _ in events:
            pass


async def test_looks_of_one_user_come_one_by_one_and_rest(
    app: FastAPI, db: Database, person: Person, make_person: MakePerson, looks: Looks
) -> None:
    greedy, other = UserId(person.id), UserId((await make_person()).id)
    streams = [asyncio.create_task(follow(app, db, greedy)) for _ in range(3)]
    await eventually(lambda: looks.under_way[greedy] == 1)
    streams.append(asyncio.create_task(follow(app, db, other)))
    await eventually(lambda: len(looks.times.get(greedy, ())) >= 3 and len(looks.times.get(other, ())) >= 1)
    for stream in streams:
        stream.cancel()
    await asyncio.gather(*streams, return_exceptions=True)
    assert looks.most == {greedy: 1, other: 1}
    times = looks.times[greedy]
    rests = [following[0] - before[1] for before, following in pairwise(times)]
    assert min(rests) > 3.5 * LOOK_SECONDS
    # The other one has waited for none of them.
    assert looks.times[other][0][0] < times[2][0]


async def test_a_stream_that_waits_for_its_turn_reads_nothing_with_a_token_that_has_ended_meanwhile(
    app: FastAPI, db: Database, person: Person, looks: Looks
) -> None:
    user_id, watch = UserId(person.id), app.state.event_watch
    ended = False

    async def is_welcome() -> None:
        if ended:
            raise InvalidToken

    async def read_next() -> None:
        start = await streaming.find_start(db, user_id, None)
        await anext(streaming.follow_events(db, watch, user_id, start, before_each=is_welcome))

    async with watch.looks_of(user_id).turn():
        reading = asyncio.create_task(read_next())
        await eventually(lambda: bool(watch.looks_of(user_id)._lock._waiters))
        ended = True
    with pytest.raises(InvalidToken):
        await reading
    assert looks.times == {}
