"""Events in the order in which they are known to be complete, for streams."""

from datetime import timedelta
from uuid import UUID

from app.kernel.database import ReadConn
from app.kernel.ids import UserId
from app.users.records import StreamedEvent, StreamPosition

# The first transaction that is under way: all before it have ended, so that nothing can come before what they wrote.
START_OF_STREAM = """
    SELECT now() AS created_at, (pg_snapshot_xmin(pg_current_snapshot())::text::bigint % 4294967296)::text AS xid,
           '00000000-0000-0000-0000-000000000000'::uuid AS id
"""


async def start_of_stream(conn: ReadConn) -> StreamPosition:
    """Behind all that was committed before now."""
    row = await conn.fetchrow(START_OF_STREAM)
    assert row is not None  # noqa: S101 - a selection without a table has one row.
    return StreamPosition(**row)


GET_POSITION = """
    SELECT created_at, xmin::text AS xid, id FROM users.events WHERE user_id = $1 AND id = $2
"""


async def get_position(conn: ReadConn, user_id: UserId, event_id: UUID) -> StreamPosition | None:
    """Where an event of a user stands; None: there is no such event."""
    row = await conn.fetchrow(GET_POSITION, user_id, event_id)
    return None if row is None else StreamPosition(**row)


# Streams run in the order of transactions. Times do not do: an event may become visible after others that were stored
# later. PostgreSQL keeps in each row which transaction wrote it, and `age` compares them although their numbers wrap.
# An event is sent once all transactions before its own have ended.
#
# No writing transaction lasts longer than `$5`, so that those of events that are stored further apart follow each other
# as their times do. With a long backlog only its next rows are read, up to the `$7`th that cannot have been sent yet
# and as long again as a transaction may last: of these, all that come before the newest among the former are complete.
LIST_STREAMED_EVENTS = """
    WITH bound AS (
        SELECT coalesce((SELECT b.created_at FROM users.events AS b
                         WHERE b.user_id = $1 AND b.created_at > $2::timestamptz + $5::interval
                         ORDER BY b.created_at, b.id OFFSET $7 LIMIT 1), 'infinity') AS at
    ), found AS (
        SELECT e.id, e.kind, e.occurred_at, e.properties, e.created_at, e.xmin::text AS xid, age(e.xmin) AS age
        FROM users.events AS e CROSS JOIN bound AS b
        WHERE e.user_id = $1 AND e.created_at >= $2::timestamptz - $5::interval AND e.created_at <= b.at + $5::interval
          AND (age(e.xmin) < age($3::text::xid) OR (age(e.xmin) = age($3::text::xid) AND e.id > $4))
    )
    SELECT f.id, f.kind, f.occurred_at, f.properties, f.created_at, f.xid,
           f.age > age((pg_snapshot_xmin(pg_current_snapshot())::text::bigint % 4294967296)::text::xid) AS is_settled
    FROM found AS f
    WHERE f.age >= (SELECT min(n.age) FROM found AS n CROSS JOIN bound AS b WHERE n.created_at <= b.at)
    ORDER BY f.age DESC, f.id
    LIMIT $6
"""


async def list_streamed_events(
    conn: ReadConn, user_id: UserId, position: StreamPosition, *, longest: timedelta, limit: int, scanned: int
) -> list[StreamedEvent]:
    """The next events of a user behind `position`. One that is not settled yet must not be sent, nor any behind it."""
    rows = await conn.fetch(
        LIST_STREAMED_EVENTS, user_id, position.created_at, position.xid, position.id, longest, limit, scanned
    )
    return [StreamedEvent(**row) for row in rows]
