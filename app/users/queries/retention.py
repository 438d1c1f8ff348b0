"""Events whose time is over."""

from collections.abc import Sequence
from uuid import UUID

from app.kernel.database import ReadConn, Tx
from app.kernel.ids import UserId

GET_END_OF_PAGE = """
    SELECT id FROM users.users WHERE id > $1 ORDER BY id OFFSET $2 - 1 LIMIT 1
"""


async def get_end_of_page(conn: ReadConn, after: UUID, count: int) -> UUID | None:
    """The last of the next `count` users; None: there are fewer."""
    last: UUID | None = await conn.fetchval(GET_END_OF_PAGE, after, count)
    return last


# Of each user the old events are one range of an index, which also has their kinds.
DELETE_EXPIRED_EVENTS = """
    WITH expired AS (
        SELECT o.user_id, o.id
        FROM users.users AS u CROSS JOIN LATERAL (
            SELECT e.user_id, e.id FROM users.events AS e
            WHERE e.user_id = u.id AND e.created_at < now() - make_interval(days => $3)
              AND e.kind LIKE $1 AND e.kind NOT LIKE ALL($2::text[])
            ORDER BY e.created_at DESC, e.id DESC
            LIMIT $6
        ) AS o
        WHERE u.id > $4 AND ($5::uuid IS NULL OR u.id <= $5)
        LIMIT $6
    )
    DELETE FROM users.events AS e USING expired AS x WHERE e.user_id = x.user_id AND e.id = x.id
    RETURNING e.user_id
"""


async def delete_expired_events(
    tx: Tx, *, pattern: str, but: Sequence[str], days: int, after: UUID, last: UUID | None, limit: int
) -> list[UserId]:
    """Deletes up to `limit` events older than so many days of the users behind `after` up to `last`, None: of all of
    them, whose kind fits `pattern` and none of `but`; answers with the owner of each.
    """
    rows = await tx.fetch(DELETE_EXPIRED_EVENTS, pattern, but, days, after, last, limit)
    return [row["user_id"] for row in rows]
