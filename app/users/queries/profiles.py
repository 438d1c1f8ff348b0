"""Profiles."""

from collections.abc import Mapping, Sequence
from uuid import UUID

import orjson

from app.kernel.database import ReadConn, Tx
from app.kernel.database.versions import Versions
from app.kernel.ids import UserId
from app.users.records import Preferences, PublicUser, User, UserExport

INSERT_USER = """
    WITH new_user AS (
        INSERT INTO users.users (id, email, email_verified, display_name, locale, timezone)
        VALUES ($1, $2, $3, $4, $5, $6)
        RETURNING id, email, email_verified, display_name, bio, avatar_url, locale, timezone,
                  created_at, updated_at, version
    ), new_preferences AS (
        INSERT INTO users.preferences (user_id, language) SELECT id, locale FROM new_user
    )
    SELECT id, email, email_verified, display_name, bio, avatar_url, locale, timezone,
           created_at, updated_at, version
    FROM new_user
"""


async def insert_user(
    tx: Tx,
    *,
    user_id: UserId,
    email: str,
    email_verified: bool,
    display_name: str | None,
    locale: str,
    timezone: str,
) -> User:
    (row,) = await tx.fetch(INSERT_USER, user_id, email, email_verified, display_name, locale, timezone)
    return User(**row)


LIST_USERS = """
    SELECT id, email, email_verified, display_name, bio, avatar_url, locale, timezone,
           created_at, updated_at, version
    FROM users.users
    WHERE id = ANY($1::uuid[]) AND deleted_at IS NULL
"""


async def list_users(conn: ReadConn, user_ids: Sequence[UserId]) -> dict[UserId, User]:
    """Those of `user_ids` that there are."""
    return {row["id"]: User(**row) for row in await conn.fetch(LIST_USERS, user_ids)}


async def get_user(conn: ReadConn, user_id: UserId) -> User | None:
    return (await list_users(conn, [user_id])).get(user_id)


GET_PUBLIC_USER = """
    SELECT id, display_name, bio, avatar_url, created_at
    FROM users.users
    WHERE id = $1 AND deleted_at IS NULL
"""


async def get_public_user(conn: ReadConn, user_id: UUID) -> PublicUser | None:
    row = await conn.fetchrow(GET_PUBLIC_USER, user_id)
    return PublicUser(**row) if row else None


# Postgres writes the JSON, see `overview.py`.
LOOK_UP_USERS = """
    WITH wanted AS (
        SELECT w.id, min(w.position) AS position
        FROM unnest($1::uuid[]) WITH ORDINALITY AS w (id, position)
        GROUP BY w.id
    ), found AS (
        SELECT v.id, row_to_json(v) AS view
        FROM (SELECT u.id, u.display_name, u.bio, u.avatar_url,
                     replace(to_char(u.created_at, 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), '.000000Z', 'Z') AS created_at
              FROM users.users u
              WHERE u.id = ANY($1) AND u.deleted_at IS NULL) AS v
    )
    SELECT COALESCE(json_agg(f.view ORDER BY w.position) FILTER (WHERE f.id IS NOT NULL), '[]') AS items,
           COALESCE(json_agg(w.id ORDER BY w.position) FILTER (WHERE f.id IS NULL), '[]') AS missing
    FROM wanted w LEFT JOIN found f ON f.id = w.id
"""


async def look_up_users(conn: ReadConn, user_ids: Sequence[UUID]) -> tuple[str, str]:
    """JSON arrays of the users among `user_ids` and of the ids of which there is none, in that order, each once."""
    ((items, missing),) = await conn.fetch(LOOK_UP_USERS, user_ids)
    return items, missing


# The changes come as one JSON object, because a column that is absent stays and one that is null is cleared.
UPDATE_USER = """
    UPDATE users.users
    SET display_name = CASE WHEN $2::jsonb ? 'display_name' THEN $2 ->> 'display_name' ELSE display_name END,
        bio = CASE WHEN $2 ? 'bio' THEN $2 ->> 'bio' ELSE bio END,
        avatar_url = CASE WHEN $2 ? 'avatar_url' THEN $2 ->> 'avatar_url' ELSE avatar_url END,
        locale = COALESCE($2 ->> 'locale', locale),
        timezone = COALESCE($2 ->> 'timezone', timezone),
        version = version + ($2 <> '{}')::integer,
        updated_at = CASE WHEN $2 = '{}' THEN updated_at ELSE now() END
    WHERE id = $1 AND deleted_at IS NULL AND (version = ANY($3::bigint[])) <> $4::boolean
    RETURNING id, email, email_verified, display_name, bio, avatar_url, locale, timezone,
              created_at, updated_at, version
"""


async def update_user(tx: Tx, user_id: UserId, changes: Mapping[str, str | None], versions: Versions) -> User | None:
    """None if there is no such user, or none in one of these versions."""
    row = await tx.fetchrow(UPDATE_USER, user_id, orjson.dumps(changes).decode(), versions.numbers, versions.excluded)
    return User(**row) if row else None


UPDATE_EMAIL = """
    UPDATE users.users
    SET email = $2, email_verified = $3, version = version + 1, updated_at = now()
    WHERE id = $1 AND deleted_at IS NULL
"""


async def update_email(tx: Tx, user_id: UserId, email: str, *, verified: bool) -> bool:
    """Whether there was such a user."""
    return await tx.execute(UPDATE_EMAIL, user_id, email, verified) == "UPDATE 1"


HIDE_USER = """
    UPDATE users.users SET deleted_at = now(), version = version + 1
    WHERE id = $1 AND deleted_at IS NULL AND (version = ANY($2::bigint[])) <> $3::boolean
"""


async def hide_user(tx: Tx, user_id: UserId, versions: Versions) -> bool:
    """Whether there was such a user, in one of these versions."""
    return await tx.execute(HIDE_USER, user_id, versions.numbers, versions.excluded) == "UPDATE 1"


ANONYMISE_USER = """
    WITH emptied AS (
        UPDATE users.preferences
        SET theme = DEFAULT, language = DEFAULT, email_notifications = false, weekly_report = false,
            extra = DEFAULT, version = version + 1, updated_at = now()
        WHERE user_id = $1
    )
    UPDATE users.users
    SET email = 'deleted-' || id || '@users.invalid', email_verified = false, display_name = NULL, bio = NULL,
        avatar_url = NULL, locale = 'en', timezone = 'UTC', version = version + 1, updated_at = now(),
        deleted_at = COALESCE(deleted_at, now())
    WHERE id = $1
"""


async def anonymise_user(tx: Tx, user_id: UserId) -> bool:
    """Whether there was such a user."""
    return await tx.execute(ANONYMISE_USER, user_id) == "UPDATE 1"


GET_USER_EXPORT = """
    SELECT ROW(u.id, u.email, u.email_verified, u.display_name, u.bio, u.avatar_url, u.locale, u.timezone,
               u.created_at, u.updated_at, u.version) AS user,
           ROW(p.theme, p.language, p.email_notifications, p.weekly_report, p.extra, p.version) AS preferences
    FROM users.users u JOIN users.preferences p ON p.user_id = u.id
    WHERE u.id = $1
"""


async def get_user_export(conn: ReadConn, user_id: UserId) -> UserExport | None:
    """Also of a user who is deleted but not yet anonymised."""
    row = await conn.fetchrow(GET_USER_EXPORT, user_id)
    if row is None:
        return None
    return UserExport(user=User(*row["user"]), preferences=Preferences(*row["preferences"]))
