"""Commits that wait for a synchronous standby which is away.

PostgreSQL lets them wait without any limit, whatever `statement_timeout` says, and also when their client has gone. To
cancel one would show its changes to everybody before they are safe, and who repeats a request that has nothing left to
do would be told that it is done. So they are left alone; but each further one would keep a connection of the server, so
while some wait, new ones are refused at once.
"""

import asyncio
from collections.abc import Awaitable, Callable

from prometheus_client import Gauge

from app.kernel.background import Background
from app.kernel.database.failures import DatabaseUnavailable
from app.kernel.errors import Unavailable
from app.kernel.telemetry import get_logger

_logger = get_logger(__name__)
_stalled = Gauge(
    "app_database_commits_stalled",
    "Whether writes are refused because commits wait for a standby.",
    multiprocess_mode="livemax",
)
_ASK_AGAIN_SECONDS = 0.5

# With a standby that is there, commits wait too, but not for so long.
COUNT_WAITING = """
SELECT count(*) FROM pg_stat_activity
 WHERE wait_event = 'SyncRep' AND query_start < clock_timestamp() - interval '0.5 seconds'
"""


class Stalls:
    """One per process. Nothing is asked before a commit was given up."""

    def __init__(self, ask: Callable[[str], Awaitable[int]]) -> None:
        self._ask = ask
        self._is_stalled = False
        self._watching: asyncio.Task[None] | None = None
        self._background = Background()

    def check(self) -> None:
        """Raises `DatabaseUnavailable` while commits would wait."""
        if self._is_stalled:
            raise DatabaseUnavailable("No standby confirms what is written.")

    async def over(self) -> None:
        """Returns once no commit waits any more."""
        if self._watching is None:
            self._watching = self._background.spawn(self._watch())
        await asyncio.shield(self._watching)

    async def close(self) -> None:
        await self._background.close()

    async def _watch(self) -> None:
        try:
            while (waiting := await self._count()) > 0:
                if not self._is_stalled:
                    _logger.error("commits wait for a standby", waiting=waiting)
                    self._is_stalled = True
                    _stalled.set(1)
                await asyncio.sleep(_ASK_AGAIN_SECONDS)
            if self._is_stalled:
                _logger.warning("commits wait no more")
        finally:
            self._is_stalled = False
            _stalled.set(0)
            self._watching = None

    async def _count(self) -> int:
        try:
            return await self._ask(COUNT_WAITING)
        except Unavailable:
            # Nobody to ask: it stays as it is.
            return int(self._is_stalled)
