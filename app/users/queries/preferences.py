"""Preferences."""

from collections.abc import Mapping, Sequence

import orjson

from app.kernel.database import ReadConn, Tx
from app.kernel.database.versions import Versions
from app.kernel.ids import UserId
from app.users.records import Preferences

LIST_PREFERENCES = """
    SELECT p.user_id, p.theme, p.language, p.email_notifications, p.weekly_report, p.extra, p.version
    FROM users.preferences p JOIN users.users u ON u.id = p.user_id
    WHERE p.user_id = ANY($1::uuid[]) AND u.deleted_at IS NULL
"""


async def list_preferences(conn: ReadConn, user_ids: Sequence[UserId]) -> dict[UserId, Preferences]:
    """Of those of `user_ids` that there are."""
    return {user_id: Preferences(*row) for user_id, *row in await conn.fetch(LIST_PREFERENCES, user_ids)}


LIST_WEEKLY_REPORTERS = """
    SELECT p.user_id
    FROM users.preferences p JOIN users.users u ON u.id = p.user_id
    WHERE p.weekly_report AND u.deleted_at IS NULL
      AND p.user_id > COALESCE($1::uuid, '00000000-0000-0000-0000-000000000000')
    ORDER BY p.user_id
    LIMIT $2
"""


async def list_weekly_reporters(conn: ReadConn, after: UserId | None, limit: int) -> list[UserId]:
    """A page of the users who want a weekly report, behind `after`."""
    return [row["user_id"] for row in await conn.fetch(LIST_WEEKLY_REPORTERS, after, limit)]


LOCK_PREFERENCES = """
    SELECT p.theme, p.language, p.email_notifications, p.weekly_report, p.extra, p.version
    FROM users.preferences p JOIN users.users u ON u.id = p.user_id
    WHERE p.user_id = $1 AND u.deleted_at IS NULL
    FOR NO KEY UPDATE OF p
"""


async def lock_preferences(tx: Tx, user_id: UserId) -> Preferences | None:
    """The row as it stays until the transaction ends."""
    row = await tx.fetchrow(LOCK_PREFERENCES, user_id)
    return Preferences(**row) if row else None


UPDATE_PREFERENCES = """
    UPDATE users.preferences p
    SET theme = COALESCE($2::jsonb ->> 'theme', p.theme),
        language = COALESCE($2 ->> 'language', p.language),
        email_notifications = COALESCE(($2 ->> 'email_notifications')::boolean, p.email_notifications),
        weekly_report = COALESCE(($2 ->> 'weekly_report')::boolean, p.weekly_report),
        extra = COALESCE($2 -> 'extra', p.extra),
        version = p.version + ($2 <> '{}')::integer,
        updated_at = CASE WHEN $2 = '{}' THEN p.updated_at ELSE now() END
    FROM users.users u
    WHERE p.user_id = $1 AND (p.version = ANY($3::bigint[])) <> $4::boolean
      AND u.id = p.user_id AND u.deleted_at IS NULL
    RETURNING p.theme, p.language, p.email_notifications, p.weekly_report, p.extra, p.version
"""


async def update_preferences(
    tx: Tx, user_id: UserId, changes: Mapping[str, object], versions: Versions
) -> Preferences | None:
    """None if there is no such row, or none in one of these versions."""
    row = await tx.fetchrow(
        UPDATE_PREFERENCES, user_id, orjson.dumps(changes).decode(), versions.numbers, versions.excluded
    )
    return Preferences(**row) if row else None


END_WEEKLY_REPORT = """
    UPDATE users.preferences p
    SET weekly_report = false, version = p.version + 1, updated_at = now()
    FROM users.users u
    WHERE p.user_id = $1 AND p.weekly_report AND u.id = p.user_id AND u.deleted_at IS NULL
    RETURNING p.user_id
"""


async def end_weekly_report(tx: Tx, user_id: UserId) -> bool:
    return await tx.fetchval(END_WEEKLY_REPORT, user_id) is not None
