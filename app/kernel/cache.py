"""Two-level cache of finished answers, forgotten by tag.

Level 1 is this process's memory, level 2 is Redis. A write forgets tags after its commit (`Cache.forget`): the own
process at once, the others by a message, before the writer gets its answer. What must hold:

- A process never serves an answer older than its own last write, and others follow within 50 ms.
- A fill that began before a write never survives it. In level 1 a counter orders fills and writes; in level 2 each
  entry carries the versions its tags had before the database was read, and counts only while they are the same.
- While messages may be lost, level 1 is empty and unused. Tags that could not be forgotten in Redis are tried again
  until it answers, and level 2 is not read for them meanwhile.
- Without Redis everything is a miss.
"""

import asyncio
import random
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from time import monotonic

import msgspec
from prometheus_client import Counter

from app.kernel.background import Background
from app.kernel.bus import Bus
from app.kernel.database import Database, Tx
from app.kernel.ids import UserId, new_id
from app.kernel.redis import RedisGateway, RedisUnavailable
from app.kernel.settings import CacheSettings
from app.kernel.telemetry import get_logger

FORGET_TOPIC = "cache.forget"
_CHANNEL = "onehop:cache:forget"
_ENTRY_PREFIX = "cache:entry:"
_TAG_PREFIX = "cache:tag:"
_RETRY_SECONDS = 0.1
_MAX_PENDING_TAGS = 10_000
_MAX_REMEMBERED_TAGS = 100_000

_logger = get_logger(__name__)
_requests_total = Counter("app_cache_requests", "Cache look-ups.", ["tier", "result"])
_local_hit = _requests_total.labels("local", "hit")
_remote_hit = _requests_total.labels("remote", "hit")
_miss = _requests_total.labels("remote", "miss")
_bypass = _requests_total.labels("remote", "bypass")

# Stores an entry if its tags still have the versions seen before the database was read. A tag without a version gets
# one, so that an entry is valid only while every one of its tags exists: an evicted tag is a miss, never a stale
# answer.
_STORE_SCRIPT = """
for i = 2, #KEYS do
  local current = redis.call('GET', KEYS[i])
  if (current or '') ~= ARGV[i + 1] then return 0 end
end
local versions = {}
for i = 2, #KEYS do
  local version = ARGV[i + 1]
  if version == '' then version = ARGV[3 + #KEYS - 1] end
  redis.call('SET', KEYS[i], version, 'PX', ARGV[2] * 2)
  versions[#versions + 1] = version
end
redis.call('SET', KEYS[1], table.concat(versions, ',') .. '\\n' .. ARGV[1], 'PX', ARGV[2])
return 1
"""

_FORGET_SCRIPT = """
for i = 1, #KEYS do redis.call('SET', KEYS[i], ARGV[1], 'PX', ARGV[2]) end
return redis.call('PUBLISH', ARGV[3], ARGV[4])
"""


@dataclass(frozen=True, slots=True)
class CachedRead:
    """Declares that the answers of a GET may be cached for each caller, in the router that owns it.

    `tags` names, for a caller, what the answer is made of; forgetting any of them ends the cached answer.
    """

    path: str
    scopes: frozenset[str]
    tags: Callable[[UserId], tuple[str, ...]]


class CachedAnswer(msgspec.Struct, frozen=True, array_like=True):
    """A finished 200 answer: raw header pairs, entity tag, and body."""

    headers: list[tuple[bytes, bytes]]
    etag: bytes
    body: bytes


class _LocalEntry:
    __slots__ = ("answer", "expires_at", "tags")

    def __init__(self, answer: CachedAnswer, tags: tuple[str, ...], expires_at: float) -> None:
        self.answer = answer
        self.tags = tags
        self.expires_at = expires_at


@dataclass(frozen=True, slots=True)
class _Ticket:
    """Taken before the database is read, to tell afterwards whether anything was written meanwhile."""

    key: str
    tags: tuple[str, ...]
    started: int
    versions: tuple[str, ...] | None


class Cache:
    """One per process."""

    def __init__(self, settings: CacheSettings, redis: RedisGateway, bus: Bus) -> None:
        self._settings = settings
        self._redis = redis
        self._bus = bus
        self._origin = new_id().bytes
        self._entries: OrderedDict[str, _LocalEntry] = OrderedDict()
        self._bytes = 0
        self._local_hits = 0
        self._keys_of_tag: dict[str, set[str]] = {}
        # Orders local writes and fills: a fill is kept only if none of its tags was forgotten after it began.
        self._counter = 0
        self._forgotten_at: OrderedDict[str, int] = OrderedDict()
        self._forgotten_floor = 0
        self._pending: set[str] = set()
        self._retry_task: asyncio.Task[None] | None = None
        self._flights: dict[str, asyncio.Future[CachedAnswer | None]] = {}
        self._flights_of_tag: dict[str, set[str]] = {}
        self._background = Background()
        self._store = redis.client.register_script(_STORE_SCRIPT)
        self._forget = redis.client.register_script(_FORGET_SCRIPT)
        bus.subscribe(_CHANNEL, self._on_message, on_up=self._drop_all, on_down=self._drop_all)

    def bind(self, database: Database) -> None:
        """Takes the tags that the units of work of `database` forget."""
        database.on_commit(FORGET_TOPIC, self.forget_now)

    def forget(self, tx: Tx, *tags: str) -> None:
        """After the commit of `tx`, nothing cached under `tags` is served any more."""
        for tag in tags:
            tx.emit(FORGET_TOPIC, tag)

    def sample(self) -> None:
        """Adds what was counted since the last call to the metrics; a hit itself is too cheap to be counted there."""
        _local_hit.inc(self._local_hits)
        self._local_hits = 0

    def get_local(self, key: str) -> CachedAnswer | None:
        """The answer in this process's memory."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry.expires_at < monotonic():
            self._remove(key)
            return None
        self._local_hits += 1
        self._entries.move_to_end(key)
        return entry.answer

    async def get_or_fill(
        self, key: str, tags: tuple[str, ...], fill: Callable[[], Awaitable[CachedAnswer | None]]
    ) -> CachedAnswer | None:
        """The answer in Redis, or that of `fill`, which runs once for all who ask for `key` at the same time.

        None: `fill` had nothing to cache, or another caller's had not; who gets it has to find an answer alone.
        """
        flight = self._flights.get(key)
        if flight is not None:
            return await asyncio.shield(flight)
        flight = self._flights[key] = asyncio.get_running_loop().create_future()
        for tag in tags:
            self._flights_of_tag.setdefault(tag, set()).add(key)
        answer = None
        try:
            answer, ticket = await self._get_remote(key, tags)
            if answer is None:
                answer = await fill()
                if answer is not None:
                    self._keep(ticket, answer)
                    # Nobody waits for Redis to take it.
                    self._background.spawn(self._store_remote(ticket, answer))
        finally:
            if self._flights.get(key) is flight:
                self._end_flight(key, tags)
            if not flight.done():
                flight.set_result(answer)
        return answer

    async def forget_now(self, tags: Sequence[str]) -> None:
        """Forgets `tags` here at once and everywhere before it returns, or as soon as Redis answers again."""
        tags = tuple(dict.fromkeys(tags))
        self._forget_local(tags)
        try:
            await self._forget_remote(tags)
        except RedisUnavailable:
            if len(self._pending) < _MAX_PENDING_TAGS:
                self._pending.update(tags)
            else:
                # The error itself says nothing: it is the number of tags that matters.
                _logger.error(  # noqa: TRY400
                    "too many cache tags wait for redis; they end by their time to live", tags=len(tags)
                )
            if self._retry_task is None or self._retry_task.done():
                self._retry_task = self._background.spawn(self._retry_pending())

    async def close(self) -> None:
        await self._background.close()

    async def _get_remote(self, key: str, tags: tuple[str, ...]) -> tuple[CachedAnswer | None, _Ticket]:
        """The answer in Redis, or None; and the ticket with which a fresh one may be kept."""
        started = self._counter
        if not self._settings.enabled or not self._pending.isdisjoint(tags) or not self._redis.available:
            _bypass.inc()
            return None, _Ticket(key, tags, started, None)
        keys = [_ENTRY_PREFIX + key, *(_TAG_PREFIX + tag for tag in tags)]
        try:
            raw, *versions = await self._redis.call(lambda client: client.mget(keys))
        except RedisUnavailable:
            _bypass.inc()
            return None, _Ticket(key, tags, started, None)
        present = tuple((version or b"").decode() for version in versions)
        ticket = _Ticket(key, tags, started, present)
        if raw is not None:
            stored, _, payload = raw.partition(b"\n")
            if stored.decode() == ",".join(present):
                answer = msgspec.msgpack.decode(payload, type=CachedAnswer)
                _remote_hit.inc()
                self._keep(ticket, answer)
                return answer, ticket
        _miss.inc()
        return None, ticket

    async def _store_remote(self, ticket: _Ticket, answer: CachedAnswer) -> None:
        """Keeps a fresh answer in Redis, unless one of its tags was forgotten since the ticket was taken."""
        if ticket.versions is None or not self._redis.available:
            return
        ttl_ms = int(self._settings.ttl * 1000 * random.uniform(0.9, 1.1))  # noqa: S311 - jitter, not a secret
        keys = [_ENTRY_PREFIX + ticket.key, *(_TAG_PREFIX + tag for tag in ticket.tags)]
        args: list[bytes | str | int] = [msgspec.msgpack.encode(answer), ttl_ms, *ticket.versions, new_id().hex]
        try:
            await self._redis.call(lambda client: self._store(keys=keys, args=args, client=client))
        except RedisUnavailable:
            return

    def _end_flight(self, key: str, tags: Iterable[str]) -> None:
        del self._flights[key]
        for tag in tags:
            keys = self._flights_of_tag.get(tag)
            if keys is not None:
                keys.discard(key)
                if not keys:
                    del self._flights_of_tag[tag]

    async def _forget_remote(self, tags: Sequence[str]) -> None:
        keys = [_TAG_PREFIX + tag for tag in tags]
        message = msgspec.msgpack.encode((self._origin, tags))
        args: list[bytes | str | int] = [new_id().hex, self._settings.ttl * 3000, _CHANNEL, message]
        await self._redis.call(lambda client: self._forget(keys=keys, args=args, client=client))

    async def _retry_pending(self) -> None:
        while self._pending:
            await asyncio.sleep(_RETRY_SECONDS)
            tags = tuple(self._pending)
            try:
                await self._forget_remote(tags)
            except RedisUnavailable:
                continue
            self._pending.difference_update(tags)

    def _on_message(self, payload: bytes) -> None:
        origin, tags = msgspec.msgpack.decode(payload, type=tuple[bytes, list[str]])
        if origin != self._origin:
            self._forget_local(tags)

    def _forget_local(self, tags: Iterable[str]) -> None:
        self._counter += 1
        for tag in tags:
            self._forgotten_at[tag] = self._counter
            self._forgotten_at.move_to_end(tag)
            for key in tuple(self._keys_of_tag.get(tag, ())):
                self._remove(key)
            # Who asks from now on must not be given what a fill under way has read before this.
            for key in self._flights_of_tag.pop(tag, ()):
                self._flights.pop(key, None)
        while len(self._forgotten_at) > _MAX_REMEMBERED_TAGS:
            self._forgotten_floor = self._forgotten_at.popitem(last=False)[1]

    def _keep(self, ticket: _Ticket, answer: CachedAnswer) -> None:
        """Into level 1, where that is safe."""
        if not self._settings.enabled or not self._bus.is_connected or ticket.started < self._forgotten_floor:
            return
        if any(self._forgotten_at.get(tag, 0) > ticket.started for tag in ticket.tags):
            return
        self._remove(ticket.key)
        ttl = self._settings.ttl * random.uniform(0.9, 1.1)  # noqa: S311 - jitter, not a secret
        self._entries[ticket.key] = _LocalEntry(answer, ticket.tags, monotonic() + ttl)
        self._bytes += len(answer.body)
        for tag in ticket.tags:
            self._keys_of_tag.setdefault(tag, set()).add(ticket.key)
        while len(self._entries) > self._settings.local_entries or self._bytes > self._settings.local_bytes:
            self._remove(next(iter(self._entries)))

    def _remove(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        self._bytes -= len(entry.answer.body)
        for tag in entry.tags:
            keys = self._keys_of_tag[tag]
            keys.discard(key)
            if not keys:
                del self._keys_of_tag[tag]

    def _drop_all(self) -> None:
        self._counter += 1
        self._forgotten_floor = self._counter
        self._entries.clear()
        self._keys_of_tag.clear()
        self._bytes = 0
