"""The audit trail."""

from datetime import datetime
from uuid import UUID

from app.identity.records.security_events import NewSecurityEvent, SecurityEvent, TrailEntry
from app.kernel.database import ReadConn, Tx
from app.kernel.ids import UserId

_LOWEST = UUID(int=0)

INSERT_SECURITY_EVENT = """
INSERT INTO identity.security_events (user_id, id, action, actor_id, session_id, ip, user_agent, data, created_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
"""


async def insert_security_event(tx: Tx, event: NewSecurityEvent) -> None:
    await tx.execute(
        INSERT_SECURITY_EVENT,
        event.user_id,
        event.id,
        event.action,
        event.actor_id,
        event.session_id,
        event.device.ip,
        event.device.user_agent,
        event.data,
        event.created_at,
    )


# A console that reads again and again is one entry, until something else has happened a hundred times.
INSERT_READ_EVENT = """
INSERT INTO identity.security_events (user_id, id, action, actor_id, session_id, ip, user_agent, data, created_at)
SELECT $1, $2, $3, $4, $5, $6, $7, $8::jsonb, $9
 WHERE NOT EXISTS (
       SELECT FROM (
              SELECT action, session_id, data, created_at FROM identity.security_events
               WHERE user_id = $1 ORDER BY id DESC LIMIT 100) AS recent
        WHERE recent.action = $3 AND recent.session_id IS NOT DISTINCT FROM $5 AND recent.data = $8::jsonb
          AND recent.created_at > $9::timestamptz - interval '10 minutes')
"""


async def insert_read_event(tx: Tx, event: NewSecurityEvent) -> None:
    """Notes that something was read, unless the same session has read the same in the last ten minutes."""
    await tx.execute(
        INSERT_READ_EVENT,
        event.user_id,
        event.id,
        event.action,
        event.actor_id,
        event.session_id,
        event.device.ip,
        event.device.user_agent,
        event.data,
        event.created_at,
    )


# One statement for a known address and an unknown one alike. It does not wait for the disk, which would tell the two
# apart by time.
INSERT_FAILED_LOGIN = """
INSERT INTO identity.security_events (user_id, id, action, ip, user_agent, created_at)
SELECT user_id, $2, 'login_failed', $3, $4, $5
  FROM identity.accounts, (SELECT set_config('synchronous_commit', 'off', true)) AS quick
 WHERE email_canonical = $1 AND status <> 'deleted'
"""


async def insert_failed_login(
    tx: Tx, email_canonical: str, event_id: UUID, ip: str | None, user_agent: str | None, now: datetime
) -> None:
    await tx.execute(INSERT_FAILED_LOGIN, email_canonical, event_id, ip, user_agent, now)


# Ids begin with the time, so the entries since a moment are one range of the primary key.
HAS_ENTRIES_SINCE = """
SELECT count(*) >= $3 FROM (SELECT FROM identity.security_events WHERE user_id = $1 AND id >= $2 LIMIT $3) AS recent
"""


async def has_entries_since(conn: ReadConn, user_id: UserId, first_id: UUID, count: int) -> bool:
    """Whether the trail of a user has `count` entries with this id or a later one."""
    return bool(await conn.fetchval(HAS_ENTRIES_SINCE, user_id, first_id, count))


DELETE_OLD_SECURITY_EVENTS = """
DELETE FROM identity.security_events
 WHERE (user_id, id) IN (
       SELECT user_id, id FROM identity.security_events
        WHERE created_at < $1
        ORDER BY created_at
        LIMIT $2
        FOR UPDATE SKIP LOCKED)
"""


async def delete_old_security_events(tx: Tx, before: datetime, limit: int) -> int:
    """Deletes up to `limit` entries of all trails that are older; the answer is how many."""
    return int((await tx.execute(DELETE_OLD_SECURITY_EVENTS, before, limit)).removeprefix("DELETE "))


LIST_SECURITY_EVENTS = """
SELECT id, action, actor_id, session_id, ip, user_agent, data, created_at
  FROM identity.security_events
 WHERE user_id = $1 AND id < coalesce($2::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff')
 ORDER BY id DESC
 LIMIT $3
"""


async def list_security_events(conn: ReadConn, user_id: UserId, before: UUID | None, limit: int) -> list[SecurityEvent]:
    return [SecurityEvent(**row) for row in await conn.fetch(LIST_SECURITY_EVENTS, user_id, before, limit)]


# Entries of all users are read in the order of their times, of which an index knows; those of one user by their ids.
LIST_ALL_SECURITY_EVENTS = """
SELECT user_id, id, action, actor_id, session_id, ip, user_agent, data, created_at
  FROM identity.security_events
 WHERE (created_at, id) < ($1, $2) AND (created_at, id) >= ($3, $4) AND ($5::text IS NULL OR action = $5)
 ORDER BY created_at DESC, id DESC
 LIMIT $6
"""
LIST_SECURITY_EVENTS_OF = """
SELECT user_id, id, action, actor_id, session_id, ip, user_agent, data, created_at
  FROM identity.security_events
 WHERE user_id = $1 AND id < $2 AND id >= $3 AND ($4::text IS NULL OR action = $4) AND created_at >= $5
 ORDER BY id DESC
 LIMIT $6
"""


async def list_all_security_events(
    conn: ReadConn,
    *,
    user_id: UserId | None,
    action: str | None,
    since: datetime,
    before: tuple[datetime, UUID],
    scan_end: tuple[datetime, UUID] | None,
    limit: int,
) -> list[TrailEntry]:
    """Entries of all trails, or of that of a user, newest first, down to `scan_end`."""
    if user_id is None:
        lowest = max((since, _LOWEST), scan_end or (since, _LOWEST))
        rows = await conn.fetch(LIST_ALL_SECURITY_EVENTS, *before, *lowest, action, limit)
    else:
        lowest_id = scan_end[1] if scan_end else _LOWEST
        rows = await conn.fetch(LIST_SECURITY_EVENTS_OF, user_id, before[1], lowest_id, action, since, limit)
    return [TrailEntry(**row) for row in rows]


GET_SECURITY_EVENTS_END = """
SELECT created_at, id FROM identity.security_events WHERE (created_at, id) < ($1, $2)
 ORDER BY created_at DESC, id DESC OFFSET $3 LIMIT 1
"""
GET_SECURITY_EVENTS_END_OF = """
SELECT created_at, id FROM identity.security_events WHERE user_id = $1 AND id < $2
 ORDER BY id DESC OFFSET $3 LIMIT 1
"""


async def get_security_events_end(
    conn: ReadConn, *, user_id: UserId | None, before: tuple[datetime, UUID], count: int
) -> tuple[datetime, UUID] | None:
    """The last of the next `count` entries of all trails, or of that of a user; None: there are fewer."""
    if user_id is None:
        row = await conn.fetchrow(GET_SECURITY_EVENTS_END, *before, count - 1)
    else:
        row = await conn.fetchrow(GET_SECURITY_EVENTS_END_OF, user_id, before[1], count - 1)
    return None if row is None else (row["created_at"], row["id"])
