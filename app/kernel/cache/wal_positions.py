"""Up to which position of the WAL the commits of each tag reach: what a read replica must have replayed to be read.

Kept in Redis, because any process may get the writer's next request. A commit is noted before its writer gets
an answer, so no client misses a write of its own. Without Redis nothing is known, and the primary answers.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from app.kernel.background import Background
from app.kernel.cache import FORGET_TOPIC
from app.kernel.database import UNKNOWN_POSITION
from app.kernel.database.incarnation import Incarnation
from app.kernel.redis.gateway import RedisGateway, RedisUnavailable, Script

# In place of a tag: the least position of every tag, asked of the primary when it is missing.
_FLOOR = "*"
# Far longer than the largest lag of a replica in use: what is forgotten has been replayed everywhere.
_KEPT_SECONDS = 3600
_RETRY_SECONDS = 0.1

_RAISE_SCRIPT = """
for i = 1, #KEYS do
  local present = redis.call('GET', KEYS[i])
  if not present or present < ARGV[1] then redis.call('SET', KEYS[i], ARGV[1]) end
  if ARGV[2] ~= '0' then redis.call('EXPIRE', KEYS[i], ARGV[2]) end
end
"""


class WalPositions:
    """One per process."""

    def __init__(self, redis: RedisGateway, incarnation: Incarnation) -> None:
        self._redis = redis
        self._incarnation = incarnation
        self._raise = Script(_RAISE_SCRIPT)
        self._background = Background()
        self._is_retrying = False

    async def close(self) -> None:
        await self._background.close()

    async def remember_position(self, emitted: Mapping[str, Sequence[Any]], position: str) -> None:
        """Keeps `position` for the tags that a unit forgets."""
        keys = [self._key(tag) for tag in dict.fromkeys(emitted.get(FORGET_TOPIC, ()))]
        if not keys:
            return
        if position == UNKNOWN_POSITION:
            await self._doubt_all()
            return
        try:
            await self._tell(keys, position, _KEPT_SECONDS)
        except RedisUnavailable:
            await self._doubt_all()

    async def latest(self, tags: Sequence[str], ask_now: Callable[[], Awaitable[str]]) -> str:
        """The position that covers all commits of `tags`; `ask_now` gives one where it has been forgotten."""
        try:
            *known, floor = await self._redis.call(
                lambda client: client.mget([self._key(tag) for tag in (*tags, _FLOOR)])
            )
            if floor is None:
                now = await ask_now()
                if now != UNKNOWN_POSITION:
                    await self._tell([self._key(_FLOOR)], now, 0)
                floor = now.encode()
        except RedisUnavailable:
            return UNKNOWN_POSITION
        latest: bytes = max(floor, *(position for position in known if position is not None), b"")
        return latest.decode()

    def _key(self, tag: str) -> str:
        """A position counts only in the life of the database that it comes from: the next one may begin before it."""
        return f"wal:{self._incarnation.id.hex}:{tag}"

    async def _tell(self, keys: Sequence[str], position: str, seconds: int) -> None:
        await self._redis.call(lambda client: self._raise(client, keys, [position, seconds]))

    async def _doubt_all(self) -> None:
        """A position could not be kept: the next read asks the primary for one that covers everything."""
        try:
            await self._redis.call(lambda client: client.delete(self._key(_FLOOR)))
        except RedisUnavailable:
            if not self._is_retrying:
                self._is_retrying = True
                self._background.spawn(self._doubt_later())

    async def _doubt_later(self) -> None:
        await asyncio.sleep(_RETRY_SECONDS)
        self._is_retrying = False
        await self._doubt_all()
