"""A user's part of the overview, as JSON."""

from collections.abc import Sequence

from app.kernel.database import ReadConn
from app.kernel.ids import UserId
from app.users.records import OverviewPart

# Postgres writes the JSON: it takes a seventh of the time that records made of so many small columns take here. The
# moments have the form that other answers give them; the time zone of every session is UTC.
LIST_OVERVIEWS = """
    SELECT u.id AS user_id,
           (SELECT row_to_json(v) FROM (
                SELECT u.id, u.email, u.email_verified, u.display_name, u.bio, u.avatar_url, u.locale, u.timezone,
                       replace(to_char(u.created_at, 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), '.000000Z', 'Z') AS created_at,
                       replace(to_char(u.updated_at, 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), '.000000Z', 'Z') AS updated_at
            ) AS v) AS user,
           (SELECT row_to_json(v) FROM (
                SELECT p.theme, p.language, p.email_notifications, p.weekly_report, p.extra
            ) AS v) AS preferences,
           (SELECT COALESCE(json_agg(v), '[]') FROM (
                SELECT e.id, e.kind,
                       replace(to_char(e.occurred_at, 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), '.000000Z', 'Z') AS occurred_at,
                       e.properties,
                       replace(to_char(e.created_at, 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), '.000000Z', 'Z') AS created_at
                FROM users.events e
                WHERE e.user_id = u.id
                ORDER BY e.created_at DESC, e.id DESC
                LIMIT 10
            ) AS v) AS recent_events
    FROM users.users u JOIN users.preferences p ON p.user_id = u.id
    WHERE u.id = ANY($1::uuid[]) AND u.deleted_at IS NULL
"""


async def list_overviews(conn: ReadConn, user_ids: Sequence[UserId]) -> dict[UserId, OverviewPart]:
    """Of those of `user_ids` that there are."""
    return {
        user_id: OverviewPart(user, preferences, recent_events)
        for user_id, user, preferences, recent_events in await conn.fetch(LIST_OVERVIEWS, user_ids)
    }
