"""Level 2: finished answers in Redis, each with the versions that its tags had before the database was read.

All look-ups of one moment are one script, and so are all answers to be stored and all tags to be forgotten; in a
cluster it is one for each user, whose keys all lie in one slot.
"""

import asyncio
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple, TypeVar
from zlib import crc32

import msgspec

from app.kernel.background import Background
from app.kernel.batching.coalescing import Coalescer
from app.kernel.cache.cached_response import MAX_VARIANTS, CachedAnswer
from app.kernel.database.incarnation import Incarnation
from app.kernel.ids import new_id
from app.kernel.redis.gateway import RedisGateway, RedisUnavailable, Script
from app.kernel.settings import CacheSettings

P = TypeVar("P")
T = TypeVar("T")

_ID_LENGTH = 32
# Beyond it an answer is not stored: Redis is too slow to be of use then.
_MAX_WAITING_STORES = 512
_MAX_WAITING_BYTES = 16 * 1024 * 1024
_MAX_STORES = 32
# Of nodes that are away some may not be known as such.
_ANNOUNCEMENTS = 3
# Scripts at a time for tags to be forgotten, one for each user.
_MAX_FORGETS = 500

# In all scripts KEYS are, for each entry, its key and those of its tags.
#
# Gives a tag without a version a new one before the database is read. Without that, a tag that never had a version
# would look like one that was forgotten and then lost: an entry counts only while Redis has held all of its tags.
# ARGV are the new version, the time to live of tags, and for each entry the number of its tags.
_LOOK_UP_SCRIPT = """
local values = redis.call('MGET', unpack(KEYS))
local key = 1
for i = 3, #ARGV do
  for tag = key + 1, key + ARGV[i] do
    if not values[tag] then
      redis.call('SET', KEYS[tag], ARGV[1], 'PX', ARGV[2])
      values[tag] = ARGV[1]
    end
  end
  key = key + 1 + ARGV[i]
end
return values
"""

# Stores entries whose tags still have the versions seen before the database was read. ARGV are, for each entry, the
# number of its tags, its time to live, the versions, and the answer.
_STORE_SCRIPT = """
local key, arg = 1, 1
while key <= #KEYS do
  local count, ttl = tonumber(ARGV[arg]), tonumber(ARGV[arg + 1])
  local versions, same = {}, true
  for i = 1, count do
    versions[i] = ARGV[arg + 1 + i]
    same = same and redis.call('GET', KEYS[key + i]) == versions[i]
  end
  if same then
    for i = 1, count do redis.call('PEXPIRE', KEYS[key + i], ttl * 2) end
    redis.call('SET', KEYS[key], table.concat(versions, ',') .. '\\n' .. ARGV[arg + 2 + count], 'PX', ttl)
  end
  key, arg = key + 1 + count, arg + 3 + count
end
"""

# Allowed without memory too, because a server that is full must not keep others from hearing what has changed.
_FORGET_SCRIPT = """#!lua flags=allow-oom
for i = 1, #KEYS do redis.call('SET', KEYS[i], ARGV[1], 'PX', ARGV[2]) end
return redis.call('PUBLISH', ARGV[3], ARGV[4])
"""


class Wanted(NamedTuple):
    """The key of an entry and its tags."""

    key: str
    tags: tuple[str, ...]


class Found(NamedTuple):
    """What Redis has of an entry, and the present versions of its tags."""

    answer: CachedAnswer | None
    versions: tuple[bytes, ...]


class RemoteCache:
    """`channel` is where the other processes hear of what was forgotten, as (`origin`, tags)."""

    def __init__(
        self,
        settings: CacheSettings,
        redis: RedisGateway,
        incarnation: Incarnation,
        *,
        channel: str,
        origin: bytes,
    ) -> None:
        self._settings = settings
        self._incarnation = incarnation
        self._redis = redis
        self._channel = channel
        self._origin = origin
        self._look_up_script = Script(_LOOK_UP_SCRIPT)
        self._store_script = Script(_STORE_SCRIPT)
        self._forget_script = Script(_FORGET_SCRIPT)
        self._look_ups = Coalescer(self._look_up_all, shared_failure=RedisUnavailable)
        self._forgets = Coalescer(self._forget_all, shared_failure=RedisUnavailable)
        self._stores: list[tuple[Wanted, tuple[bytes, ...], CachedAnswer]] = []
        self._waiting_bytes = 0
        self._is_storing = False
        self._background = Background()

    @property
    def available(self) -> bool:
        return self._redis.available

    async def look_up(self, wanted: Wanted) -> Found:
        """Raises RedisUnavailable."""
        found = await self._look_ups.get(wanted)
        if found is None:
            raise RedisUnavailable
        return found

    def store(self, wanted: Wanted, versions: tuple[bytes, ...], answer: CachedAnswer) -> None:
        """Stores `answer` soon, if the tags still have these versions then. No request waits for it."""
        if len(self._stores) < _MAX_WAITING_STORES and self._waiting_bytes < _MAX_WAITING_BYTES:
            self._stores.append((wanted, versions, answer))
            self._waiting_bytes += answer.size
        if not self._is_storing:
            self._is_storing = True
            self._background.spawn(self._store_waiting())

    async def forget(self, tags: tuple[str, ...]) -> None:
        """Makes all entries under `tags` worthless and tells the other processes.

        Raises:
            RedisUnavailable: of one of the tags at least.
        """
        if not await self._forgets.get(tags):
            raise RedisUnavailable

    async def forget_some(self, tags: Sequence[str]) -> set[str]:
        """As `forget`, as far as it goes: the tags that were forgotten. Of very many, those of some users by chance."""
        parts = _by_slot(tags, _tag_name) if self._redis.is_cluster else [list(tags)]
        if len(parts) > _MAX_FORGETS:
            parts = random.sample(parts, _MAX_FORGETS)
        outcomes = await asyncio.gather(*map(self._forget_part, parts), return_exceptions=True)
        return {tag for part, _ in _done(parts, outcomes) for tag in part}

    async def drop(self, addresses: Sequence[str]) -> None:
        """Removes the answers of one user's `addresses`, which are keys without a query, and those of all queries.

        Raises:
            RedisUnavailable
        """
        names = [_entry_name(address) for address in addresses]
        keys = [f"{name}{variant}" for name in names for variant in ("", *(f"?{n}" for n in range(MAX_VARIANTS)))]
        await self._redis.call(lambda client: client.unlink(*keys), key=keys[0])

    async def announce(self, tags: Sequence[str]) -> None:
        """Tells the other processes at least, where the node that has the tags is away and another one is not."""
        if self._redis.is_cluster:
            message = msgspec.msgpack.encode((self._origin, tags))
            for _ in range(_ANNOUNCEMENTS):
                with suppress(RedisUnavailable):
                    await self._redis.call(lambda client: client.publish(self._channel, message))
                    return

    async def close(self) -> None:
        await self._look_ups.close()
        await self._forgets.close()
        await self._background.close()

    async def _look_up_all(self, wanted: Sequence[Wanted]) -> Mapping[Wanted, Found]:
        if not self._redis.is_cluster:
            return await self._look_up_some(wanted)
        parts = _by_slot(wanted, lambda item: _entry_name(item.key))
        outcomes = await asyncio.gather(*map(self._look_up_some, parts), return_exceptions=True)
        return {item: answer for _, found in _done(parts, outcomes) for item, answer in found.items()}

    async def _look_up_some(self, wanted: Sequence[Wanted]) -> dict[Wanted, Found]:
        keys: list[str] = []
        args: list[str | int] = [new_id().hex, self._settings.ttl * 2000]
        for key, tags in wanted:
            keys.append(_entry_name(key))
            keys.extend([_tag_name(tag) for tag in tags])
            args.append(len(tags))
        values: list[bytes | None] = await self._redis.call(
            lambda client: self._look_up_script(client, keys, args), key=keys[0]
        )
        found = {}
        start = 0
        for item in wanted:
            end = start + 1 + len(item.tags)
            versions = tuple([value or b"" for value in values[start + 1 : end]])
            found[item] = Found(_decode(values[start], versions, self._owner_of(item.key)), versions)
            start = end
        return found

    def _owner_of(self, key: str) -> bytes:
        """What stands before an answer in its entry: the life of the database, and which query the answer is for."""
        _, mark, query = key.partition("?")
        return self._incarnation.id.bytes + (mark + query).encode() + b"\n"

    async def _store_waiting(self) -> None:
        try:
            while self._stores:
                batch, self._stores = self._stores[:_MAX_STORES], self._stores[_MAX_STORES:]
                self._waiting_bytes = sum(answer.size for _, _, answer in self._stores)
                parts = _by_slot(batch, lambda item: _entry_name(item[0].key)) if self._redis.is_cluster else [batch]
                outcomes = await asyncio.gather(*map(self._store_all, parts), return_exceptions=True)
                if not _done(parts, outcomes):
                    self._stores.clear()
                    self._waiting_bytes = 0
        finally:
            self._is_storing = False

    async def _store_all(self, batch: Sequence[tuple[Wanted, tuple[bytes, ...], CachedAnswer]]) -> None:
        keys: list[str] = []
        args: list[bytes | str | int] = []
        for (key, tags), versions, answer in batch:
            keys.append(_entry_name(key))
            keys.extend([_tag_name(tag) for tag in tags])
            ttl = int(self._settings.ttl * 1000 * random.uniform(0.9, 1.1))  # noqa: S311 - jitter, not a secret
            args.extend((len(tags), ttl, *versions, self._owner_of(key) + answer.encode()))
        await self._redis.call(lambda client: self._store_script(client, keys, args), key=keys[0])

    async def _forget_all(self, groups: Sequence[tuple[str, ...]]) -> Mapping[tuple[str, ...], bool]:
        done = await self.forget_some(list(dict.fromkeys(tag for group in groups for tag in group)))
        return {group: done.issuperset(group) for group in groups}

    async def _forget_part(self, tags: Sequence[str]) -> None:
        keys = [_tag_name(tag) for tag in tags]
        message = msgspec.msgpack.encode((self._origin, tags))
        args: list[bytes | str | int] = [new_id().hex, self._settings.ttl * 3000, self._channel, message]
        await self._redis.call(lambda client: self._forget_script(client, keys, args), key=keys[0])


def _entry_name(key: str) -> str:
    """The key of an entry in Redis. What is in braces decides about its slot in a cluster: the id of the user.

    All queries of an address share a few entries, of which each says whose it is. However many queries a caller thinks
    of, Redis holds no more of one user.
    """
    address, mark, query = key[_ID_LENGTH:].partition("?")
    variant = f"?{crc32(query.encode()) % MAX_VARIANTS}" if mark else ""
    return f"cache:entry:{{{key[:_ID_LENGTH]}}}{address}{variant}"


def _tag_name(tag: str) -> str:
    """The key of a tag in Redis: in the slot of the user's entries, for tags that end with a user's id."""
    kind, _, user_id = tag.rpartition(":")
    return f"cache:tag:{{{user_id.replace('-', '')}}}{kind}"


def _by_slot(items: Iterable[T], name: Callable[[T], str]) -> list[list[T]]:
    """`items` by the part of their names in Redis that decides about the slot."""
    parts: dict[str, list[T]] = {}
    for item in items:
        parts.setdefault(name(item).partition("{")[2].partition("}")[0], []).append(item)
    return list(parts.values())


def _done(parts: Sequence[P], outcomes: Sequence[T | BaseException]) -> list[tuple[P, T]]:
    """The parts that did not fail for want of Redis, with what came of them."""
    done = []
    for part, outcome in zip(parts, outcomes, strict=True):
        if not isinstance(outcome, BaseException):
            done.append((part, outcome))
        elif not isinstance(outcome, RedisUnavailable):
            raise outcome
    return done


def _decode(raw: bytes | None, versions: Sequence[bytes], owner: bytes) -> CachedAnswer | None:
    """The answer of an entry, if its tags have the versions that it was stored with, and it was stored for `owner`."""
    if raw is None:
        return None
    stored, _, payload = raw.partition(b"\n")
    if stored != b",".join(versions) or not payload.startswith(owner):
        return None
    return CachedAnswer.decode(payload[len(owner) :])
