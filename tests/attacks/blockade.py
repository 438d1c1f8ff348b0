"""Requests that wait for one row, in an order that a test decides."""

from tests.fixtures.servers import Connection
from tests.fixtures.waiting import eventually

WAITING = """
SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
"""


class Blockade:
    """Holds the row of every account, so that a test decides in which order the requests behind it come."""

    def __init__(self, holder: Connection, observer: Connection) -> None:
        self._holder = holder
        self._observer = observer

    async def begin(self) -> None:
        await self._holder.execute("BEGIN")
        await self._holder.execute("SELECT user_id FROM identity.accounts FOR UPDATE")

    async def is_reached_by(self, count: int) -> None:
        """Returns once so many statements wait for a lock."""

        async def wait() -> bool:
            return bool(await self._observer.fetchval(WAITING) >= count)

        await eventually(wait, within=20)

    async def end(self) -> None:
        await self._holder.execute("ROLLBACK")
