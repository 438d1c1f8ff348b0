"""Two instances of the program on the same servers, and what random orders of writes and reads may never show.

A read shows at least what its own instance had acknowledged before the read began, and in the end every instance shows
what the database holds. Memory and Redis lose things on the way.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import redis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from app.kernel.cache import Cache
from app.kernel.database import Database
from app.main import create_app
from app.settings import Settings
from tests.fixtures.application import Lifespan
from tests.fixtures.people import Person, register
from tests.fixtures.sizes import sized
from tests.fixtures.waiting import eventually

ACTIONS = (
    "write",
    "write",
    "record",
    "me",
    "me",
    "overview",
    "overview",
    "forget memory",
    "age",
    "flush redis",
    "settle",
)
# What passes between the beginnings of two steps: nothing, turns of the event loop, or milliseconds.
PAUSES = (None, None, 0.0, 0.0, 0.0005, 0.002)
PEOPLE = 10
# Each byte is a step; bytes are drawn ten times faster than tuples.
SCHEDULES = st.lists(st.binary(min_size=2, max_size=9), min_size=PEOPLE, max_size=PEOPLE)


class Instance:
    """One process of the program as one person asks it, without a network between."""

    def __init__(self, running: Lifespan, person: Person) -> None:
        self._running = running
        authorization = person.headers["Authorization"].encode()
        self._headers = [(b"authorization", authorization), (b"content-type", b"application/json")]
        # The newest state whose writer has its answer from here.
        self.acknowledged_version = 0
        self.acknowledged_event: str | None = None

    @property
    def cache(self) -> Cache:
        cache: Cache = self._running._application.state.resources.cache
        return cache

    async def request(self, method: str, path: str, body: object = None) -> tuple[dict[bytes, bytes], Any]:
        content = b"" if body is None else json.dumps(body).encode()
        sent: list[dict[str, Any]] = []
        bodies = [content]

        async def receive() -> dict[str, Any]:
            if not bodies:
                # This client never goes away.
                await asyncio.Event().wait()
            return {"type": "http.request", "body": bodies.pop(), "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [*self._headers, (b"content-length", str(len(content)).encode())],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
        }
        await self._running(scope, receive, send)
        answer = b"".join(message.get("body", b"") for message in sent[1:])
        assert sent[0]["status"] in {200, 201}, answer
        return dict(sent[0]["headers"]), json.loads(answer)


@dataclass(repr=False)
class World:
    """Both instances as one person sees them, and all that this person has written."""

    instances: Sequence[Instance]
    database: Database
    valkey: redis.asyncio.Redis
    person: Person
    version_of: dict[str | None, int] = field(default_factory=lambda: {None: 1})
    count: int = 0
    seen: list[tuple[int, str | None]] = field(default_factory=list)

    async def run(self, schedule: bytes) -> None:
        """One schedule: each step begins after its pause, whether or not those before it have ended."""
        tasks: list[asyncio.Task[None]] = []
        for instance in self.instances:
            # Those before have been looked for at the end of theirs, and an overview does not show all of them.
            instance.acknowledged_event = None
        for step in schedule:
            rest, action_number = divmod(step, len(ACTIONS))
            action, instance = ACTIONS[action_number], self.instances[rest % 2]
            pause = PAUSES[rest // 2 % len(PAUSES)]
            if action == "settle":
                await asyncio.gather(*tasks)
            elif action == "forget memory":
                instance.cache._local.forget_all()
            elif action == "age":
                # What is read next is near the end of its time, and is renewed.
                for entry in instance.cache._local._entries.values():
                    entry.due_at = 0.0
            else:
                tasks.append(asyncio.create_task(self.act(action, instance)))
            if pause is not None:
                await asyncio.sleep(pause)
        await asyncio.gather(*tasks)
        for version, bio in self.seen:
            assert self.version_of[bio] >= version
        self.seen.clear()
        await self.check_end()

    async def act(self, action: str, instance: Instance) -> None:
        self.count += 1
        if action == "write":
            bio = f"bio {self.count}"
            headers, body = await instance.request("PATCH", "/v1/users/me", {"bio": bio})
            assert body["bio"] == bio
            self.version_of[bio] = version = version_in(headers)
            instance.acknowledged_version = max(instance.acknowledged_version, version)
        elif action == "record":
            _, body = await instance.request("POST", "/v1/events", {"kind": f"k{self.count}"})
            instance.acknowledged_event = body["ids"][0]
        elif action == "flush redis":
            await self.valkey.flushdb()
        else:
            await self.read(action, instance)

    async def read(self, action: str, instance: Instance) -> None:
        version, event = instance.acknowledged_version, instance.acknowledged_event
        if action == "me":
            headers, body = await instance.request("GET", "/v1/users/me")
            assert version_in(headers) >= version
            self.seen.append((version_in(headers), body["bio"]))
            return
        _, body = await instance.request("GET", "/v1/overview")
        # Which version a text belongs to may be known only when its writer has the answer.
        self.seen.append((version, body["user"]["bio"]))
        # Fewer are recorded in a schedule than an overview shows.
        assert event is None or event in {item["id"] for item in body["recent_events"]}

    async def check_end(self) -> None:
        """Nothing is under way any more, so both show what is stored, as soon as they have heard of it."""
        async with self.database.read("test") as conn:
            version, bio = (await conn.fetch(USER, self.person.id))[0]
            events = [str(row["id"]) for row in await conn.fetch(EVENTS, self.person.id)]

        async def is_true() -> bool:
            answers = [
                answer
                for instance in self.instances
                for answer in (
                    await instance.request("GET", "/v1/users/me"),
                    await instance.request("GET", "/v1/overview"),
                )
            ]
            return all(
                (version_in(headers), body["bio"]) == (version, bio)
                if "bio" in body
                else (body["user"]["bio"], [item["id"] for item in body["recent_events"]]) == (bio, events)
                for headers, body in answers
            )

        await eventually(is_true)


USER = "SELECT version, bio FROM users.users WHERE id = $1"
EVENTS = "SELECT id FROM users.events WHERE user_id = $1 ORDER BY created_at DESC, id DESC LIMIT 10"


def version_in(headers: dict[bytes, bytes]) -> int:
    return int(headers[b"etag"].decode().strip('"').rpartition("-")[2])


@pytest.fixture
async def worlds(settings: Settings, frozen_garbage: None, redis_url: str) -> AsyncIterator[list[World]]:
    async with (
        Lifespan(create_app(settings)).running() as one,
        Lifespan(create_app(settings)).running() as other,
        httpx.AsyncClient(transport=httpx.ASGITransport(one), base_url="http://localhost") as client,
        redis.asyncio.Redis.from_url(redis_url) as valkey,
    ):
        people = await asyncio.gather(*(register(client) for _ in range(PEOPLE)))
        database = one._application.state.resources.db
        made = [World([Instance(one, person), Instance(other, person)], database, valkey, person) for person in people]
        await eventually(lambda: all(instance.cache._bus.is_connected for instance in made[0].instances))
        yield made


@pytest.mark.settings(APP_LOG_ACCESS="false")
@given(schedules=SCHEDULES)
# What the network makes of a schedule differs from time to time, so there is nothing to shrink or to replay.
@pytest.mark.slow
@settings(
    max_examples=sized(25),
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
async def test_no_order_of_writes_and_reads_shows_what_is_past(worlds: list[World], schedules: list[bytes]) -> None:
    await asyncio.gather(*(world.run(schedule) for world, schedule in zip(worlds, schedules, strict=True)))
