"""Point reads: what many requests want to know of one row each becomes one statement with `= ANY($1)`."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

from prometheus_client import Histogram

from app.kernel.batching.coalescing import Coalescer, TooSlow
from app.kernel.database import Database, ReadConn

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

# A batch takes milliseconds, so one of its keys is to blame for a second. The wait for a connection does not count:
# where the database is busy, many statements in place of one would make it worse.
_SLOW_SECONDS = 1.0

_batch_size = Histogram(
    "onehop_point_read_batch_size", "Keys per batch of point reads.", buckets=(1, 2, 4, 8, 16, 32, 64)
)


class PointReads:
    """One per process. A read begins after its request came, so it sees every write that was answered before."""

    def __init__(self, db: Database, *, slow_seconds: float = _SLOW_SECONDS) -> None:
        """`slow_seconds`: how long a statement for several keys may take before each is read alone."""
        self._db = db
        self._slow_seconds = slow_seconds
        self._coalescers: dict[Any, Coalescer[Any, Any]] = {}

    async def get(
        self, unit: str, read: Callable[[ReadConn, Sequence[K]], Awaitable[Mapping[K, V]]], key: K
    ) -> V | None:
        """What `read` finds for `key`; `unit` names the use case in metrics.

        `read` must be the same function each time: by it one knows what may be read together.
        """
        coalescer = self._coalescers.get(read)
        if coalescer is None:
            coalescer = self._coalescers[read] = self._coalesce(unit, read)
        return await coalescer.get(key)

    async def close(self) -> None:
        for coalescer in self._coalescers.values():
            await coalescer.close()

    def _coalesce(
        self, unit: str, read: Callable[[ReadConn, Sequence[K]], Awaitable[Mapping[K, V]]]
    ) -> Coalescer[K, V]:
        async def ask(keys: Sequence[K]) -> Mapping[K, V]:
            _batch_size.observe(len(keys))
            async with self._db.read(unit) as conn:
                if len(keys) == 1:
                    return await read(conn, keys)
                limit = asyncio.timeout(self._slow_seconds)
                try:
                    async with limit:
                        return await read(conn, keys)
                except TimeoutError as error:
                    if limit.expired():
                        raise TooSlow from error
                    raise

        return Coalescer(ask, slow_seconds=self._slow_seconds)
