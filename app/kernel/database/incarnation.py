"""Which life of the database this is.

A backup that is restored is the past, while Redis, memory and clients still hold what was lost: cached answers, entity
tags, access and refresh tokens. All of these carry the id of the incarnation they come from, and count in that one
alone. A restored dump is noticed by itself, because its row lies in another place than before. After a base backup or a
recovery to a point in time it lies where it was: there an operator says so (`python -m app restored`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from uuid import UUID

from app.kernel.background import Background
from app.kernel.database import Database, ReadConn, Tx
from app.kernel.errors import Unavailable
from app.kernel.ids import new_id
from app.kernel.observability.telemetry import get_logger

_READ_SECONDS = 1.0
_RETRY_SECONDS = 0.1

_logger = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Life:
    """The row. `restored_at`: when the database began this life as a restored backup, or None."""

    id: UUID
    restored_at: datetime | None
    is_in_place: bool


# A cluster, a database in it, and the table: a restored dump differs in one of them at least, and a standby in none.
GET_LIFE = """
SELECT id, restored_at,
       place IS NOT DISTINCT FROM concat_ws('.', (pg_control_system()).system_identifier,
           (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database()), tableoid) AS is_in_place
  FROM kernel.incarnation
"""


async def get_life(conn: ReadConn) -> Life | None:
    """None while a dump is being restored, or if it was restored without this row."""
    row = await conn.fetchrow(GET_LIFE)
    return Life(**row) if row else None


# A database that was never looked at begins its first life. One process begins the next one; the others find it in
# place. $1: an operator says so, in place or not; $2: and nothing was lost.
BEGIN_LIFE = """
INSERT INTO kernel.incarnation AS present (place)
SELECT concat_ws('.', (pg_control_system()).system_identifier,
           (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database()),
           'kernel.incarnation'::regclass::oid)
ON CONFLICT (is_only) DO UPDATE
   SET place = excluded.place,
       id = CASE WHEN $2 OR (present.place IS NULL AND NOT $1) THEN present.id ELSE excluded.id END,
       restored_at = CASE WHEN $2 OR (present.place IS NULL AND NOT $1) THEN present.restored_at ELSE now() END
 WHERE $1 OR present.place IS DISTINCT FROM excluded.place
"""


async def begin_life(tx: Tx, *, is_said: bool, nothing_lost: bool) -> None:
    await tx.execute(BEGIN_LIFE, is_said, nothing_lost)


class Incarnation:
    """One per process. Until the database has answered it is one of this process alone, in which nothing counts."""

    def __init__(self) -> None:
        self.id = new_id()
        self.restored_at: datetime | None = None
        self.is_known = False
        self._callbacks: list[Callable[[], None]] = []
        self._background = Background()

    @property
    def mark(self) -> bytes:
        """What credentials of this life carry. Empty in a database that was never restored."""
        return self.id.bytes if self.restored_at is not None else b""

    def on_change(self, callback: Callable[[], None]) -> None:
        """`callback` runs whenever another life has begun, also when the first one becomes known."""
        self._callbacks.append(callback)

    def adopt(self, life: Life) -> None:
        """From now on this is the present life."""
        if self.is_known and life.id == self.id:
            return
        if self.is_known:
            _logger.warning("database.restore_noticed", incarnation=str(life.id))
        self.id, self.restored_at, self.is_known = life.id, life.restored_at, True
        for callback in self._callbacks:
            callback()

    async def start(self, db: Database) -> None:
        """Reads it and looks again every second. PostgreSQL need not be there yet."""
        await self._read(db)
        self._background.repeat(
            partial(self._read, db), name="database.incarnation", every=self._seconds_until_read, rests_first=True
        )

    async def close(self) -> None:
        await self._background.close()

    async def _read(self, db: Database) -> None:
        try:
            async with db.read("kernel.incarnation") as conn:
                life = await get_life(conn)
            if life is not None and not life.is_in_place:
                async with db.statement("kernel.incarnation") as tx:
                    await begin_life(tx, is_said=False, nothing_lost=False)
                async with db.read("kernel.incarnation") as conn:
                    life = await get_life(conn)
        except Unavailable:
            return
        if life is not None:
            self.adopt(life)

    def _seconds_until_read(self) -> float:
        return _READ_SECONDS if self.is_known else _RETRY_SECONDS


async def say_restored(db: Database, *, nothing_lost: bool) -> UUID:
    """Begins another life, or with `nothing_lost` goes on with the present one in another place; its id."""
    async with db.statement("kernel.incarnation") as tx:
        await begin_life(tx, is_said=True, nothing_lost=nothing_lost)
    async with db.read("kernel.incarnation") as conn:
        life = await get_life(conn)
    if life is None:
        raise Unavailable("The row of the incarnation is missing; another restore may be under way.")
    return life.id
