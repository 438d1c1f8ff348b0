"""Caches as several processes have them, over a source that counts how often it is asked."""

import asyncio
from collections.abc import Awaitable, Callable

import redis

from app.dev.embedded import EmbeddedValkey
from app.kernel.cache import Cache, CachedAnswer
from app.kernel.redis.bus import Bus
from tests.fixtures.waiting import eventually

TAGS = ("user:1", "events:1")


class Source:
    """Stands for the database: answers its present value after `delay`, and counts how often it is asked."""

    def __init__(self) -> None:
        self.value = b"0"
        self.reads = 0
        self.hold: asyncio.Event | None = None

    async def read(self) -> CachedAnswer:
        self.reads += 1
        value = self.value
        if self.hold is not None:
            await self.hold.wait()
        return answer_of(value)


def answer_of(body: bytes) -> CachedAnswer:
    return CachedAnswer([(b"content-type", b"text/plain")], b'"tag"', body)


class Process:
    """A cache with a connection of its own, as each process has one."""

    def __init__(self, cache: Cache, bus: Bus, source: Source) -> None:
        self.cache = cache
        self.bus = bus
        self.source = source
        self.is_renewable = True

    async def get(self, key: str = "key", tags: tuple[str, ...] = TAGS) -> bytes:
        answer = self.cache.get_local(key) or await self.cache.get_or_fill(
            key, tags, self.source.read, renewable=self.is_renewable
        )
        assert answer is not None
        return answer.body

    async def stored(self) -> None:
        """Returns when what was filled is in Redis, for which no caller waits otherwise."""
        await eventually(lambda: not self.cache._remote._is_storing)

    def make_due(self) -> None:
        """As if the entries in memory were in the last tenth of their time."""
        for entry in self.cache._local._entries.values():
            entry.due_at = 0.0

    @property
    def local(self) -> bytes | None:
        answer = self.cache.get_local("key")
        return answer.body if answer else None


StartProcess = Callable[..., Awaitable[Process]]


async def entries(valkey: EmbeddedValkey) -> list[str]:
    """The cached entries in Redis."""
    async with redis.asyncio.Redis.from_url(valkey.url()) as client:
        return sorted(key.decode() for key in await client.keys("cache:entry:*"))
