"""Events whose time is over."""

from collections.abc import Sequence
from dataclasses import dataclass

from app.kernel.database import Tx
from app.kernel.ids import UserId
from app.users.records import RetentionPosition

# Of each user the old events are one range of an index, which also has their kinds. How many rows of it are read is
# bounded, not how many are deleted, because of millions of old events all may be kept. A kind that no rule fits has no
# days, and what is compared with NULL is kept.
DELETE_EXPIRED_EVENTS = """
    WITH scanned AS (
        SELECT u.id AS user_id, o.created_at, o.id, o.kind
        FROM (
            SELECT id FROM users.users WHERE id >= $1 AND (id > $1 OR $2::timestamptz IS NOT NULL) ORDER BY id LIMIT $6
        ) AS u CROSS JOIN LATERAL (
            SELECT e.created_at, e.id, e.kind FROM users.events AS e
            WHERE e.user_id = u.id
              AND (e.created_at, e.id) < (
                  CASE u.id WHEN $1 THEN $2
                  ELSE now() - make_interval(days => (SELECT min(r.days) FROM unnest($5::integer[]) AS r (days))) END,
                  CASE u.id WHEN $1 THEN $3::uuid ELSE '00000000-0000-0000-0000-000000000000' END)
            ORDER BY e.created_at DESC, e.id DESC
            LIMIT $7
        ) AS o
        ORDER BY u.id, o.created_at DESC, o.id DESC
        LIMIT $7
    ), deleted AS (
        DELETE FROM users.events AS e USING scanned AS s
        WHERE e.user_id = s.user_id AND e.id = s.id
          AND s.created_at < now() - make_interval(days => (
              SELECT r.days FROM unnest($4::text[], $5::integer[]) WITH ORDINALITY AS r (pattern, days, number)
              WHERE s.kind LIKE r.pattern ORDER BY r.number LIMIT 1))
        RETURNING e.user_id
    )
    SELECT (SELECT count(*) FROM deleted) AS deleted, ARRAY(SELECT DISTINCT d.user_id FROM deleted AS d) AS owners,
           (SELECT count(*) FROM scanned) AS scanned, s.user_id, s.created_at, s.id,
           (SELECT id FROM users.users WHERE id >= $1 AND (id > $1 OR $2::timestamptz IS NOT NULL)
            ORDER BY id OFFSET $6 - 1 LIMIT 1) AS last_user_id
    FROM (SELECT) AS one LEFT JOIN LATERAL (
        SELECT user_id, created_at, id FROM scanned ORDER BY user_id DESC, created_at, id LIMIT 1
    ) AS s ON true
"""


@dataclass(frozen=True, slots=True)
class ExpiredEvents:
    """How many events were deleted, of which users, and up to which position; None: that was the end."""

    count: int
    owners: list[UserId]
    position: RetentionPosition | None


async def delete_expired_events(
    tx: Tx, position: RetentionPosition, *, patterns: Sequence[str], days: Sequence[int], users: int, scanned: int
) -> ExpiredEvents:
    """Reads up to `scanned` old events of up to so many `users` behind `position`, and deletes of them what is older
    than the days of the first pattern that fits its kind.
    """
    row = await tx.fetchrow(
        *(DELETE_EXPIRED_EVENTS, position.user_id, position.created_at, position.id, patterns, days, users, scanned)
    )
    assert row is not None  # noqa: S101 - the outer selection has one row.
    after: RetentionPosition | None = None
    if row["scanned"] == scanned:
        after = RetentionPosition(row["user_id"], row["created_at"], row["id"])
    elif row["last_user_id"] is not None:
        after = RetentionPosition(row["last_user_id"])
    return ExpiredEvents(row["deleted"], row["owners"], after)
