"""Commits that wait for a synchronous standby which is away.

PostgreSQL lets them wait without any limit, whatever `statement_timeout` says, and also when their client has gone. To
cancel one would show its changes to all readers before they are safe, and a repeated request that has nothing left to
do would be told that it is done. So they are left alone; but each further one would keep a connection of the server, so
while some wait, new ones are refused at once: from the moment on at which the first is given up, before the server has
said why.
"""

import asyncio
from collections.abc import Awaitable, Callable

from prometheus_client import Gauge

from app.kernel.background import Background
from app.kernel.database.failures import DatabaseUnavailable
from app.kernel.errors import Unavailable
from app.kernel.observability.telemetry import get_logger

_logger = get_logger(__name__)
_stalled = Gauge(
    "onehop_database_commits_stalled",
    "1 while writes are refused because commits wait for a standby.",
    multiprocess_mode="livemax",
)
_ASK_AGAIN_SECONDS = 0.5
_UNANSWERED = "A commit got no answer, and it is not known yet why."
_UNCONFIRMED = "No standby confirms what is written."

# With a standby that is there, commits wait too, but not for so long.
COUNT_WAITING = """
SELECT count(*) FROM pg_stat_activity
 WHERE wait_event = 'SyncRep' AND query_start < clock_timestamp() - interval '0.5 seconds'
"""


class SyncStandbyMonitor:
    """One per process. Nothing is asked before a commit was given up."""

    def __init__(self, ask: Callable[[str], Awaitable[int]]) -> None:
        self._ask = ask
        # What a writer is told; None: writes are welcome.
        self._refusal: str | None = None
        self._watching: asyncio.Task[None] | None = None
        self._background = Background()

    def check(self) -> None:
        """Raises `DatabaseUnavailable` while commits would wait."""
        if self._refusal is not None:
            raise DatabaseUnavailable(self._refusal)

    def check_unanswered(self) -> None:
        """A commit got no answer in time: no other commit begins before the server has been asked."""
        if self._refusal is None:
            self._refusal = _UNANSWERED
        self._watch()

    async def wait_until_resumed(self) -> None:
        """Returns once no commit waits any more."""
        await asyncio.shield(self._watch())

    async def close(self) -> None:
        await self._background.close()

    def _watch(self) -> "asyncio.Task[None]":
        if self._watching is None:
            self._watching = self._background.spawn(self._poll_until_resumed())
        return self._watching

    async def _poll_until_resumed(self) -> None:
        try:
            while not await self._is_resumed():  # noqa: ASYNC110 - it has to ask.
                await asyncio.sleep(_ASK_AGAIN_SECONDS)
        finally:
            if self._refusal == _UNCONFIRMED:
                _logger.warning("database.commits_resumed")
            self._refusal = None
            _stalled.set(0)
            self._watching = None

    async def _is_resumed(self) -> bool:
        try:
            waiting = await self._ask(COUNT_WAITING)
        except Unavailable:
            # There is no server to ask: it stays as it is.
            return self._refusal is None
        if waiting and self._refusal != _UNCONFIRMED:
            _logger.error("database.commits_stalled", waiting=waiting)
            self._refusal = _UNCONFIRMED
            _stalled.set(1)
        return waiting == 0
