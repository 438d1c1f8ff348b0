"""The SQL of the module: one statement, one function over it."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from uuid import UUID

import orjson

from app.kernel.database import CopyConn, ReadConn, Row, Tx
from app.kernel.ids import UserId
from app.users.records import (
    Bucket,
    Event,
    EventBatch,
    EventCount,
    EventFilter,
    OtherEventCount,
    OverviewPart,
    Preferences,
    PublicUser,
    RawJson,
    User,
    UserExport,
)

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
    return {row["id"]: User(*row) for row in await conn.fetch(LIST_USERS, user_ids)}


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


# Postgres writes the JSON, see LIST_OVERVIEWS.
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
    WHERE id = $1 AND deleted_at IS NULL AND ($3::bigint[] IS NULL OR version = ANY($3))
    RETURNING id, email, email_verified, display_name, bio, avatar_url, locale, timezone,
              created_at, updated_at, version
"""


async def update_user(
    tx: Tx, user_id: UserId, changes: Mapping[str, str | None], versions: Sequence[int] | None
) -> User | None:
    """None if there is no such user, or none in one of these versions."""
    row = await tx.fetchrow(UPDATE_USER, user_id, _json(changes), versions)
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
    WHERE id = $1 AND deleted_at IS NULL AND ($2::bigint[] IS NULL OR version = ANY($2))
"""


async def hide_user(tx: Tx, user_id: UserId, versions: Sequence[int] | None) -> bool:
    """Whether there was such a user, in one of these versions."""
    return await tx.execute(HIDE_USER, user_id, versions) == "UPDATE 1"


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
    WHERE p.user_id = $1 AND ($3::bigint[] IS NULL OR p.version = ANY($3))
      AND u.id = p.user_id AND u.deleted_at IS NULL
    RETURNING p.theme, p.language, p.email_notifications, p.weekly_report, p.extra, p.version
"""


async def update_preferences(
    tx: Tx, user_id: UserId, changes: Mapping[str, object], versions: Sequence[int] | None
) -> Preferences | None:
    """None if there is no such row, or none in one of these versions."""
    row = await tx.fetchrow(UPDATE_PREFERENCES, user_id, _json(changes), versions)
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


INSERT_EVENTS = """
    INSERT INTO users.events (user_id, id, kind, occurred_at, properties)
    SELECT e.user_id, e.id, e.kind, COALESCE(e.occurred_at, now()), e.properties
    FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::timestamptz[], $5::jsonb[])
        AS e (user_id, id, kind, occurred_at, properties)
"""


async def insert_events(tx: Tx, batches: Sequence[EventBatch]) -> None:
    events = [event for batch in batches for event in batch.events]
    await tx.execute(
        INSERT_EVENTS,
        [batch.user_id for batch in batches for _ in batch.ids],
        [event_id for batch in batches for event_id in batch.ids],
        [event.kind for event in events],
        [event.occurred_at for event in events],
        [event.properties for event in events],
    )


# A bound that was not given is an infinite one instead of an OR, so that the plan which Postgres keeps for the
# statement decides all of them inside the index. An event is stored less than a day before it says that it
# occurred, so `since` bounds `created_at` too.
LIST_EVENTS = """
    SELECT id, kind, occurred_at, properties, created_at
    FROM users.events
    WHERE user_id = $1
      AND (created_at, id) < (COALESCE($2::timestamptz, 'infinity'), COALESCE($3::uuid, $1))
      AND (created_at, id) >= (COALESCE($8::timestamptz, '-infinity'), COALESCE($9::uuid, $1))
      AND kind BETWEEN COALESCE($4::text, '') AND COALESCE($4, '~')
      AND created_at >= COALESCE($5::timestamptz - interval '1 day', '-infinity')
      AND occurred_at >= COALESCE($5, '-infinity')
      AND occurred_at < COALESCE($6::timestamptz, 'infinity')
    ORDER BY created_at DESC, id DESC
    LIMIT $7
"""


async def list_events(
    conn: ReadConn,
    user_id: UserId,
    wanted: EventFilter,
    after: tuple[datetime, UUID] | None,
    limit: int,
    scan_end: tuple[datetime, UUID] | None = None,
) -> list[Event]:
    """The newest first, from behind `after` down to `scan_end`."""
    rows = await conn.fetch(
        LIST_EVENTS,
        user_id,
        *(after or (None, None)),
        wanted.kind,
        wanted.since,
        wanted.until,
        limit,
        *(scan_end or (None, None)),
    )
    return [_event(row) for row in rows]


GET_SCAN_END = """
    SELECT created_at, id
    FROM users.events
    WHERE user_id = $1 AND (created_at, id) < (COALESCE($2::timestamptz, 'infinity'), COALESCE($3::uuid, $1))
    ORDER BY created_at DESC, id DESC
    OFFSET $4 LIMIT 1
"""


async def get_scan_end(
    conn: ReadConn, user_id: UserId, after: tuple[datetime, UUID] | None, count: int
) -> tuple[datetime, UUID] | None:
    """The sort key of the last of the next `count` events of a user; None: there are fewer."""
    row = await conn.fetchrow(GET_SCAN_END, user_id, *(after or (None, None)), count - 1)
    return None if row is None else (row["created_at"], row["id"])


# Sorted instead of joined, for which Postgres would compare each count with each listed kind. Of very many kinds the
# groups are kept on disk, and only the sums of what is not listed leave the database.
LIST_EVENT_COUNTS = """
    SELECT r.starts_at, r.listed AS kind, count(*) AS kinds, sum(r.count)::bigint AS count
    FROM (
        SELECT t.starts_at, t.count,
               CASE WHEN dense_rank() OVER (ORDER BY t.total DESC, t.kind) <= $5 THEN t.kind END AS listed
        FROM (
            SELECT c.starts_at, c.kind, c.count, sum(c.count) OVER (PARTITION BY c.kind) AS total
            FROM (
                SELECT date_trunc($2, occurred_at, 'UTC') AS starts_at, kind, count(*) AS count
                FROM users.events
                WHERE user_id = $1 AND occurred_at >= $3 AND occurred_at < $4
                  AND created_at >= $3::timestamptz - interval '1 day'
                GROUP BY starts_at, kind
            ) AS c
        ) AS t
    ) AS r
    GROUP BY r.starts_at, r.listed
    ORDER BY r.starts_at, r.listed
"""


async def list_event_counts(
    conn: ReadConn, user_id: UserId, bucket: Bucket, since: datetime, until: datetime, max_kinds: int
) -> tuple[list[EventCount], list[OtherEventCount]]:
    """By bucket, then by kind, of the `max_kinds` most frequent kinds of the period; empty buckets are left out. And by
    bucket of all other kinds together.
    """
    items: list[EventCount] = []
    others: list[OtherEventCount] = []
    for starts_at, kind, kinds, count in await conn.fetch(LIST_EVENT_COUNTS, user_id, bucket, since, until, max_kinds):
        if kind is None:
            others.append(OtherEventCount(starts_at, kinds, count))
        else:
            items.append(EventCount(starts_at, kind, count))
    return items, others


GET_EVENT_TOTAL = """
    SELECT count(*)
    FROM users.events
    WHERE user_id = $1
      AND created_at >= COALESCE($2::timestamptz - interval '1 day', '-infinity')
      AND occurred_at >= COALESCE($2::timestamptz, '-infinity')
      AND occurred_at < COALESCE($3::timestamptz, 'infinity')
"""


async def get_event_total(conn: ReadConn, user_id: UserId, since: datetime | None, until: datetime | None) -> int:
    total: int = await conn.fetchval(GET_EVENT_TOTAL, user_id, since, until)
    return total


EVENTS_EXPORT = """
    SELECT id, kind,
           to_char(occurred_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS occurred_at,
           properties,
           to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS created_at
    FROM users.events AS e
    WHERE user_id = $1
      AND created_at >= COALESCE($2::timestamptz - interval '1 day', '-infinity')
      AND occurred_at >= COALESCE($2::timestamptz, '-infinity')
      AND occurred_at < COALESCE($3::timestamptz, 'infinity')
    ORDER BY e.created_at, id
"""


async def stream_events(
    conn: CopyConn,
    user_id: UserId,
    since: datetime | None,
    until: datetime | None,
    output: Callable[[bytes], Awaitable[None]],
) -> int:
    """CSV with a header, the oldest first, in pieces as they come; the answer is the number of events."""
    return await conn.copy_to(EVENTS_EXPORT, user_id, since, until, output=output, format="csv", header=True)


async def iterate_events(
    conn: CopyConn, user_id: UserId, since: datetime | None, until: datetime | None
) -> AsyncIterator[Row]:
    """The rows of `stream_events` one by one, for formats that Postgres does not write."""
    # Each has at most 8 KiB.
    async for row in conn.cursor(EVENTS_EXPORT, user_id, since, until, prefetch=1_000):
        yield row


DELETE_EVENTS = """
    DELETE FROM users.events
    WHERE user_id = $1
      AND id IN (SELECT id FROM users.events WHERE user_id = $1 LIMIT $2)
"""


async def delete_events(tx: Tx, user_id: UserId, limit: int) -> int:
    """How many there were to delete, at most `limit`."""
    return int((await tx.execute(DELETE_EVENTS, user_id, limit)).removeprefix("DELETE "))


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


def _event(row: Row) -> Event:
    event_id, kind, occurred_at, properties, created_at = row
    return Event(event_id, kind, occurred_at, RawJson(properties), created_at)


def _json(value: object) -> str:
    return orjson.dumps(value).decode()
