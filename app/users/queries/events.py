"""Events: written in batches, read page by page, counted and exported."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import datetime
from uuid import UUID

from app.kernel.database import CopyConn, ReadConn, Row, Tx
from app.kernel.ids import UserId
from app.users.records import Bucket, Event, EventBatch, EventFilter, RawJson

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
      AND NOT EXISTS (SELECT FROM unnest($10::text[], $11::text[]) AS w (name, value)
                      WHERE properties ->> w.name IS DISTINCT FROM w.value)
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
        [name for name, _ in wanted.properties],
        [value for _, value in wanted.properties],
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
# groups are kept on disk, and only the sums of what is not listed leave the database. Postgres writes the JSON, because
# ten thousand records would hold the event loop for 20 ms.
#
# What would be read is counted before, in the index alone, up to `$6`; beyond that nothing else is read.
GET_EVENT_COUNTS = """
    WITH stored AS MATERIALIZED (
        SELECT count(*) AS events
        FROM (
            SELECT 1 FROM users.events
            WHERE user_id = $1 AND created_at >= $3::timestamptz - interval '1 day' AND $6::integer IS NOT NULL
            LIMIT $6::integer + 1
        ) AS counted
    )
    SELECT (SELECT events FROM stored) AS events,
           COALESCE(
               json_agg(json_build_object('starts_at', s.starts_at, 'kind', s.kind, 'count', s.count)
                        ORDER BY s.period, s.kind) FILTER (WHERE s.kind IS NOT NULL),
               '[]') AS items,
           COALESCE(
               json_agg(json_build_object('starts_at', s.starts_at, 'kinds', s.kinds, 'count', s.count)
                        ORDER BY s.period) FILTER (WHERE s.kind IS NULL),
               '[]') AS others
    FROM (
        SELECT r.period, to_char(r.period AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS starts_at,
               r.listed AS kind, count(*) AS kinds, sum(r.count)::bigint AS count
        FROM (
            SELECT t.period, t.count,
                   CASE WHEN dense_rank() OVER (ORDER BY t.total DESC, t.kind) <= $5 THEN t.kind END AS listed
            FROM (
                SELECT c.period, c.kind, c.count, sum(c.count) OVER (PARTITION BY c.kind) AS total
                FROM (
                    SELECT date_trunc($2, occurred_at, 'UTC') AS period, kind, count(*) AS count
                    FROM users.events
                    WHERE user_id = $1 AND occurred_at >= $3 AND occurred_at < $4
                      AND created_at >= $3::timestamptz - interval '1 day'
                      AND COALESCE((SELECT events FROM stored) <= $6, true)
                    GROUP BY period, kind
                ) AS c
            ) AS t
        ) AS r
        GROUP BY r.period, r.listed
    ) AS s
"""


async def get_event_counts(
    conn: ReadConn,
    user_id: UserId,
    bucket: Bucket,
    since: datetime,
    until: datetime,
    *,
    max_kinds: int,
    max_events: int | None,
) -> tuple[str, str, int]:
    """Two JSON arrays (`EventSummary`): the counts of the `max_kinds` most frequent kinds of the period, and those of
    all other kinds together; empty buckets are left out. And how many events have been stored since the period began:
    these are read, unless they are more than `max_events`, when the answer is empty and the number is one more.
    """
    row = await conn.fetchrow(GET_EVENT_COUNTS, user_id, bucket, since, until, max_kinds, max_events)
    assert row is not None  # noqa: S101 - an aggregate without groups has one row.
    return row["items"], row["others"], row["events"]


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


def _event(row: Row) -> Event:
    event_id, kind, occurred_at, properties, created_at = row
    return Event(event_id, kind, occurred_at, RawJson(properties), created_at)
