"""Level 1: finished answers in this process's memory, and the order of writes and fills that keeps them true."""

import random
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from time import monotonic

from app.kernel.cache.cached_response import MAX_VARIANTS, CachedAnswer, is_variant
from app.kernel.settings import CacheSettings

_MAX_REMEMBERED_TAGS = 100_000
# What is asked for in the last tenth of its time is worth having for another one.
_RENEWED_FROM = 0.9

Fill = Callable[[], Awaitable[CachedAnswer | None]]


class _Entry:
    __slots__ = ("answer", "due_at", "expires_at", "refill", "size", "tags")

    def __init__(self, answer: CachedAnswer, tags: tuple[str, ...], ttl: float, refill: Fill | None) -> None:
        now = monotonic()
        self.answer = answer
        self.size = 0
        self.tags = tags
        self.expires_at = now + ttl
        self.refill = refill
        # When there is more to do than to answer: to renew it, or to drop it.
        self.due_at = self.expires_at if refill is None else now + ttl * _RENEWED_FROM


class LocalCache:
    """Bounded by number and by bytes; what was not asked for the longest goes first. Of the answers under one tag
    `MAX_VARIANTS` at most are of addresses with a query.

    `renew` is called with key, tags and refill of what is asked for near the end of its time, once for each entry.
    """

    def __init__(self, settings: CacheSettings, renew: Callable[[str, tuple[str, ...], Fill], None]) -> None:
        self._settings = settings
        self._renew = renew
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._bytes = 0
        # In the order of coming.
        self._keys_of_tag: dict[str, dict[str, None]] = {}
        # Orders writes and fills: a fill is kept only if none of its tags was forgotten after it began.
        self._counter = 0
        self._forgotten_at: OrderedDict[str, int] = OrderedDict()
        self._forgotten_floor = 0
        self._hits = 0

    def get(self, key: str) -> CachedAnswer | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry.due_at < monotonic() and not self._is_alive(key, entry):
            return None
        self._hits += 1
        self._entries.move_to_end(key)
        return entry.answer

    def take_hits(self) -> int:
        """How many hits there were since the last call."""
        hits, self._hits = self._hits, 0
        return hits

    def begin_fill(self) -> int:
        """A mark to be taken before anything is read for a fill."""
        return self._counter

    def keep(
        self, key: str, tags: tuple[str, ...], mark: int, answer: CachedAnswer, refill: Fill | None = None
    ) -> None:
        """Keeps what a fill found, unless one of its tags was forgotten after `mark`; `refill` would find it again."""
        if mark < self._forgotten_floor:
            return
        for tag in tags:
            if self._forgotten_at.get(tag, 0) > mark:
                return
        self._remove(key)
        if is_variant(key):
            self._make_room_for_variant(tags)
        ttl = self._settings.ttl * random.uniform(0.9, 1.1)  # noqa: S311 - jitter, not a secret
        entry = self._entries[key] = _Entry(answer, tags, ttl, refill)
        entry.size = answer.size + len(key)
        self._bytes += entry.size
        for tag in tags:
            self._keys_of_tag.setdefault(tag, {})[key] = None
        while len(self._entries) > self._settings.local_entries or self._bytes > self._settings.local_bytes:
            self._remove(next(iter(self._entries)))

    def _make_room_for_variant(self, tags: Iterable[str]) -> None:
        for tag in tags:
            variants = [key for key in self._keys_of_tag.get(tag, ()) if is_variant(key)]
            for key in variants[: max(0, len(variants) - MAX_VARIANTS + 1)]:
                self._remove(key)

    def forget(self, tags: Iterable[str]) -> None:
        self._counter += 1
        for tag in tags:
            self._forgotten_at[tag] = self._counter
            self._forgotten_at.move_to_end(tag)
            for key in tuple(self._keys_of_tag.get(tag, ())):
                self._remove(key)
        while len(self._forgotten_at) > _MAX_REMEMBERED_TAGS:
            self._forgotten_floor = self._forgotten_at.popitem(last=False)[1]

    def forget_all(self) -> None:
        """For when it is not known what was written meanwhile."""
        self._counter += 1
        self._forgotten_floor = self._counter
        self._entries.clear()
        self._keys_of_tag.clear()
        self._bytes = 0

    def _is_alive(self, key: str, entry: _Entry) -> bool:
        if entry.expires_at < monotonic():
            self._remove(key)
            return False
        # Whether or not that succeeds, this entry is left alone until its end.
        entry.due_at = entry.expires_at
        if entry.refill is not None:
            self._renew(key, entry.tags, entry.refill)
        return True

    def _remove(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        self._bytes -= entry.size
        for tag in entry.tags:
            keys = self._keys_of_tag[tag]
            keys.pop(key, None)
            if not keys:
                del self._keys_of_tag[tag]
