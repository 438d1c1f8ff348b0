"""The two levels together: look-ups, fills that many share, and what a write does to both."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from time import monotonic

import msgspec
from prometheus_client import Counter

from app.kernel.background import Background
from app.kernel.cache.cached_response import CachedAnswer, is_kept
from app.kernel.cache.local import Fill, LocalCache
from app.kernel.cache.remote import Found, RemoteCache, Wanted
from app.kernel.database import Database, Tx
from app.kernel.database.incarnation import Incarnation
from app.kernel.errors import AppError
from app.kernel.ids import UserId, new_id
from app.kernel.observability.telemetry import get_logger
from app.kernel.redis.bus import Bus
from app.kernel.redis.gateway import RedisGateway, RedisUnavailable
from app.kernel.settings import CacheSettings

FORGET_TOPIC = "cache.forget"
_CHANNEL = "onehop:cache:forget"
_RETRY_SECONDS = 0.1
_MAX_PENDING_TAGS = 10_000
# Longer than a replica lags behind, and than it takes to see that it has taken over.
_RECENT_SECONDS = 15.0
_MAX_RECENT = 2_000
# What is beyond that ends with its time and is found anew by the next request for it.
_MAX_RENEWALS = 16
_RENEWAL_SECONDS = 10.0

_logger = get_logger(__name__)
_requests_total = Counter("onehop_cache_requests", "Cache look-ups.", ["tier", "result"])
_local_hit = _requests_total.labels("local", "hit")
_remote_hit = _requests_total.labels("remote", "hit")
_miss = _requests_total.labels("remote", "miss")
_bypass = _requests_total.labels("remote", "bypass")


class Cache:
    """One per process."""

    def __init__(self, settings: CacheSettings, redis: RedisGateway, bus: Bus, incarnation: Incarnation) -> None:
        self._settings = settings
        self._bus = bus
        self._origin = new_id().bytes
        self._local = LocalCache(settings, self._renew)
        self._remote = RemoteCache(settings, redis, incarnation, channel=redis.channel(_CHANNEL), origin=self._origin)
        # By tag, which failure it was: one that failed again while it was tried again stays.
        self._pending: dict[str, int] = {}
        self._failures = 0
        # When which tags were forgotten. A server that takes over from another one may not have heard of the last ones.
        self._recent: deque[tuple[float, tuple[str, ...]]] = deque(maxlen=_MAX_RECENT)
        self._retry_task: asyncio.Task[None] | None = None
        self._flights: dict[str, asyncio.Future[CachedAnswer | None]] = {}
        self._flights_of_tag: dict[str, set[str]] = {}
        self._renewals = 0
        # Keys of the flights that other requests wait for, or have waited for.
        self._shared: set[str] = set()
        self._observers: list[Callable[[Iterable[str]], None]] = []
        self._background = Background()
        # The answer in this process's memory; bound once, because it is asked for by nearly every request.
        self.get_local = self._local.get
        bus.subscribe(_CHANNEL, self._on_message, on_up=self._on_up, on_down=self._local.forget_all)
        redis.on_failover(self._forget_recent)
        incarnation.on_change(self._forget_everything)

    def bind(self, database: Database) -> None:
        """Takes the tags that the units of work of `database` forget."""
        database.on_commit(FORGET_TOPIC, self.forget_now)

    def forget(self, tx: Tx, *tags: str) -> None:
        """After the commit of `tx`, nothing cached under `tags` is served any more."""
        for tag in tags:
            tx.emit(FORGET_TOPIC, tag)

    def on_forget(self, observer: Callable[[Iterable[str]], None]) -> None:
        """Calls `observer` with the tags that are forgotten, by whichever process; messages of others may be lost."""
        self._observers.append(observer)

    def sample(self) -> None:
        """Adds what was counted since the last call to the metrics; a hit itself is too cheap to be counted there."""
        _local_hit.inc(self._local.take_hits())

    async def get_or_fill(
        self, key: str, tags: tuple[str, ...], fill: Fill, *, renewable: bool = False
    ) -> CachedAnswer | None:
        """The answer in Redis, or that of `fill`, which runs once for all requests for `key` at the same time.

        `renewable`: `fill` needs nothing of its caller, and may be run again when the answer nears the end of its time.
        None: `fill` had nothing to cache, or another caller's had not; the caller has to find an answer alone.
        """
        flight = self._flights.get(key)
        if flight is not None:
            self._shared.add(key)
            return await asyncio.shield(flight)
        flight = self._flights[key] = asyncio.get_running_loop().create_future()
        for tag in tags:
            self._flights_of_tag.setdefault(tag, set()).add(key)
        answer = None
        try:
            answer = await self._get_or_fill_alone(Wanted(key, tags), fill, renewable=renewable)
        finally:
            if self._flights.get(key) is flight:
                self._end_flight(key, tags)
            if not flight.done():
                flight.set_result(answer)
        return answer

    def is_under_way(self, key: str) -> bool:
        """Whether the answer for `key` is being found, so that a request now waits for another's."""
        return key in self._flights

    def is_shared(self, key: str) -> bool:
        """Whether others too have asked for the answer that is being found for `key`."""
        return key in self._shared

    async def forget_now(self, tags: Sequence[str]) -> None:
        """Forgets `tags` here at once and everywhere before it returns, or as soon as Redis answers again."""
        tags = tuple(dict.fromkeys(tags))
        self._forget_local(tags)
        self._recent.append((monotonic(), tags))
        try:
            await self._remote.forget(tags)
        except RedisUnavailable:
            self._forget_later(tags)
            await self._remote.announce(tags)
        # Meanwhile another request may have brought the old answer back from Redis.
        self._forget_local(tags)

    async def drop(self, user_id: UserId, paths: Sequence[str], tags: Sequence[str]) -> None:
        """Removes every copy of the answers to a user; what is being made meanwhile is not kept.

        `tags` are all that these answers have. While Redis is away, copies there end with their time.
        """
        await self.forget_now(tags)
        try:
            await self._remote.drop([user_id.hex + path for path in paths])
        except RedisUnavailable:
            _logger.warning("cache.copies_not_dropped", ttl=self._settings.ttl)

    async def close(self) -> None:
        await self._remote.close()
        await self._background.close()

    async def _get_or_fill_alone(self, wanted: Wanted, fill: Fill, *, renewable: bool) -> CachedAnswer | None:
        mark = self._local.begin_fill()
        found = await self._look_up(wanted)
        answer = found.answer if found is not None else None
        if answer is None:
            answer = await fill()
            if answer is None or not is_kept(wanted.key, answer):
                return answer
            if found is not None:
                # No request waits for Redis to take it.
                self._remote.store(wanted, found.versions, answer)
        if self._settings.enabled and self._bus.is_connected:
            self._local.keep(wanted.key, wanted.tags, mark, answer, fill if renewable else None)
        return answer

    def _renew(self, key: str, tags: tuple[str, ...], refill: Fill) -> None:
        if self._renewals < _MAX_RENEWALS:
            self._renewals += 1
            self._background.spawn(self._renew_now(key, tags, refill))

    async def _renew_now(self, key: str, tags: tuple[str, ...], refill: Fill) -> None:
        """Refreshes the entry like a cache miss; concurrent writes invalidate it the same way."""
        try:
            async with asyncio.timeout(_RENEWAL_SECONDS):
                await self.get_or_fill(key, tags, refill, renewable=True)
        except (AppError, TimeoutError) as error:
            _logger.debug("cache.renewal_postponed", error=type(error).__name__)
        except Exception:
            _logger.exception("cache.renewal_failed")
        finally:
            self._renewals -= 1

    async def _look_up(self, wanted: Wanted) -> Found | None:
        """What Redis has; None if it cannot be asked, or must not be believed."""
        if self._settings.enabled and not self._is_pending(wanted.tags) and self._remote.available:
            try:
                found = await self._remote.look_up(wanted)
            except RedisUnavailable:
                pass
            else:
                (_miss if found.answer is None else _remote_hit).inc()
                return found
        _bypass.inc()
        return None

    def _is_pending(self, tags: Iterable[str]) -> bool:
        return bool(self._pending) and any(tag in self._pending for tag in tags)

    def _end_flight(self, key: str, tags: Iterable[str]) -> None:
        del self._flights[key]
        self._shared.discard(key)
        for tag in tags:
            keys = self._flights_of_tag.get(tag)
            if keys is not None:
                keys.discard(key)
                if not keys:
                    del self._flights_of_tag[tag]

    def _on_up(self) -> None:
        self._local.forget_all()
        self._forget_recent()

    def _forget_recent(self) -> None:
        after = monotonic() - _RECENT_SECONDS
        tags = {tag for at, tags in self._recent if at > after for tag in tags}
        if tags:
            self._forget_later(list(tags))

    def _forget_later(self, tags: Sequence[str]) -> None:
        if len(self._pending) < _MAX_PENDING_TAGS:
            self._failures += 1
            self._pending.update(dict.fromkeys(tags, self._failures))
        else:
            _logger.error("cache.tags_dropped", tags=len(tags))
        if self._retry_task is None or self._retry_task.done():
            self._retry_task = self._background.spawn(self._retry_pending())

    async def _retry_pending(self) -> None:
        while self._pending:
            await asyncio.sleep(_RETRY_SECONDS)
            tried = dict(self._pending)
            for tag in await self._remote.forget_some(list(tried)):
                if self._pending[tag] == tried[tag]:
                    del self._pending[tag]

    def _on_message(self, payload: bytes) -> None:
        origin, tags = msgspec.msgpack.decode(payload, type=tuple[bytes, list[str]])
        if origin != self._origin:
            self._forget_local(tags)

    def _forget_everything(self) -> None:
        """Another life of the database has begun; entries in Redis say which one they come from."""
        self._local.forget_all()
        self._forget_local(list(self._flights_of_tag))

    def _forget_local(self, tags: Iterable[str]) -> None:
        self._local.forget(tags)
        for observer in self._observers:
            observer(tags)
        for tag in tags:
            # A request from now on must not be given what a fill under way has read before this.
            for key in self._flights_of_tag.pop(tag, ()):
                self._flights.pop(key, None)
                self._shared.discard(key)
