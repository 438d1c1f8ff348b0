"""Messages of webhooks and their deliveries."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

from app.jobs.records.webhooks import (
    BACKLOG_FULL,
    KEPT_ATTEMPTS,
    MAX_PENDING,
    Delivery,
    DeliveryAttempt,
    Message,
    NewDelivery,
)
from app.kernel.database import ReadConn, Tx
from app.kernel.ids import UserId

# The arrays are subqueries for the reason that `INSERT_JOBS` gives.
INSERT_MESSAGES = """
WITH messages AS (
    INSERT INTO jobs.webhook_messages (user_id, id, event_type, payload, created_at)
    SELECT m.user_id, m.id, m.event_type, m.payload, m.created_at
    FROM unnest((SELECT $1::uuid[]), (SELECT $2::uuid[]), (SELECT $3::text[]), (SELECT $4::text[]),
                (SELECT $5::timestamptz[]))
         AS m(user_id, id, event_type, payload, created_at)
    ON CONFLICT DO NOTHING
), new AS (
    SELECT d.user_id, d.id, d.endpoint_id, d.message_id,
           row_number() OVER (PARTITION BY d.user_id ORDER BY d.number) AS number_of_user
    FROM unnest((SELECT $6::uuid[]), (SELECT $7::uuid[]), (SELECT $8::uuid[]), (SELECT $9::uuid[]))
         WITH ORDINALITY AS d(user_id, id, endpoint_id, message_id, number)
), pending AS (
    SELECT u.user_id, (SELECT count(*) FROM (SELECT 1 FROM jobs.webhook_deliveries AS w
                                             WHERE w.user_id = u.user_id AND w.state = 'pending'
                                             LIMIT $10) AS counted) AS deliveries
    FROM (SELECT DISTINCT user_id FROM new) AS u
)
INSERT INTO jobs.webhook_deliveries (user_id, id, endpoint_id, message_id, state, last_error)
SELECT n.user_id, n.id, n.endpoint_id, n.message_id,
       CASE WHEN p.deliveries + n.number_of_user <= $10 THEN 'pending' ELSE 'failed' END,
       CASE WHEN p.deliveries + n.number_of_user <= $10 THEN NULL ELSE $11 END
FROM new AS n JOIN pending AS p ON p.user_id = n.user_id
ON CONFLICT DO NOTHING
RETURNING id, state
"""


async def insert_messages(tx: Tx, messages: Sequence[Message], deliveries: Sequence[NewDelivery]) -> set[UUID]:
    """Stores messages and their deliveries; answers which of these are to be sent. An event is never delivered twice.

    What goes beyond the pending deliveries that a user may have is stored as failed.
    """
    rows = await tx.fetch(
        INSERT_MESSAGES,
        [message.user_id for message in messages],
        [message.id for message in messages],
        [message.event_type for message in messages],
        [message.payload for message in messages],
        [message.created_at for message in messages],
        [delivery.user_id for delivery in deliveries],
        [delivery.id for delivery in deliveries],
        [delivery.endpoint_id for delivery in deliveries],
        [delivery.message_id for delivery in deliveries],
        MAX_PENDING,
        BACKLOG_FULL,
    )
    return {row["id"] for row in rows if row["state"] == "pending"}


COUNT_PENDING = """
SELECT count(*) FROM (SELECT 1 FROM jobs.webhook_deliveries AS d
                      WHERE d.user_id = $1 AND d.state = 'pending' LIMIT $2) AS counted
"""


async def count_pending(conn: ReadConn, user_id: UserId) -> int:
    """How many deliveries of a user are pending, counted up to as many as may be."""
    count: int = await conn.fetchval(COUNT_PENDING, user_id, MAX_PENDING)
    return count


GET_DELIVERY = """
SELECT d.id, d.user_id, d.endpoint_id, d.message_id, m.event_type, d.state, d.attempts, d.last_status, d.last_error,
       d.last_response, d.last_ms, d.next_at, d.created_at, d.delivered_at
FROM jobs.webhook_deliveries AS d
JOIN jobs.webhook_messages AS m ON m.user_id = d.user_id AND m.id = d.message_id
WHERE d.user_id = $1 AND d.id = $2
"""


async def get_delivery(conn: ReadConn, user_id: UserId, delivery_id: UUID) -> Delivery | None:
    row = await conn.fetchrow(GET_DELIVERY, user_id, delivery_id)
    return None if row is None else Delivery(**row)


GET_MESSAGE = """
SELECT m.id, m.user_id, m.event_type, m.payload, m.created_at FROM jobs.webhook_messages AS m
WHERE m.user_id = $1 AND m.id = $2
"""


async def get_message(conn: ReadConn, user_id: UserId, message_id: UUID) -> Message | None:
    row = await conn.fetchrow(GET_MESSAGE, user_id, message_id)
    return None if row is None else Message(**row)


# The messages are looked up one by one: a join might read all messages of the user for a page of deliveries.
LIST_DELIVERIES = """
SELECT d.id, d.user_id, d.endpoint_id, d.message_id, m.event_type, d.state, d.attempts, d.last_status, d.last_error,
       d.last_response, d.last_ms, d.next_at, d.created_at, d.delivered_at
FROM jobs.webhook_deliveries AS d
CROSS JOIN LATERAL (
    SELECT w.event_type FROM jobs.webhook_messages AS w WHERE w.user_id = d.user_id AND w.id = d.message_id LIMIT 1
) AS m
WHERE d.user_id = $1
  AND d.id < coalesce($2::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff')
  AND d.id >= coalesce($3::uuid, '00000000-0000-0000-0000-000000000000')
  AND ($4::text IS NULL OR d.state = $4)
ORDER BY d.id DESC
LIMIT $5
"""
LIST_DELIVERIES_TO = """
SELECT d.id, d.user_id, d.endpoint_id, d.message_id, m.event_type, d.state, d.attempts, d.last_status, d.last_error,
       d.last_response, d.last_ms, d.next_at, d.created_at, d.delivered_at
FROM jobs.webhook_deliveries AS d
CROSS JOIN LATERAL (
    SELECT w.event_type FROM jobs.webhook_messages AS w WHERE w.user_id = d.user_id AND w.id = d.message_id LIMIT 1
) AS m
WHERE d.user_id = $1 AND d.endpoint_id = $6
  AND d.id < coalesce($2::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff')
  AND d.id >= coalesce($3::uuid, '00000000-0000-0000-0000-000000000000')
  AND ($4::text IS NULL OR d.state = $4)
ORDER BY d.id DESC
LIMIT $5
"""


async def list_deliveries(
    conn: ReadConn,
    user_id: UserId,
    *,
    endpoint_id: UUID | None,
    state: str | None,
    before: UUID | None,
    limit: int,
    scan_end: UUID | None,
) -> list[Delivery]:
    """A user's deliveries, newest first, down to `scan_end`."""
    values = (user_id, before, scan_end, state, limit)
    if endpoint_id is None:
        rows = await conn.fetch(LIST_DELIVERIES, *values)
    else:
        rows = await conn.fetch(LIST_DELIVERIES_TO, *values, endpoint_id)
    return [Delivery(**row) for row in rows]


GET_DELIVERY_SCAN_END = """
SELECT d.id FROM jobs.webhook_deliveries AS d
WHERE d.user_id = $1 AND d.id < coalesce($2::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff')
ORDER BY d.id DESC OFFSET $3 LIMIT 1
"""
GET_DELIVERY_SCAN_END_TO = """
SELECT d.id FROM jobs.webhook_deliveries AS d
WHERE d.user_id = $1 AND d.endpoint_id = $4 AND d.id < coalesce($2::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff')
ORDER BY d.id DESC OFFSET $3 LIMIT 1
"""


async def get_delivery_scan_end(
    conn: ReadConn, user_id: UserId, *, endpoint_id: UUID | None, before: UUID | None, count: int
) -> UUID | None:
    """The last of the next `count` deliveries of a user, or of those to this endpoint; None: there are fewer."""
    if endpoint_id is None:
        found: UUID | None = await conn.fetchval(GET_DELIVERY_SCAN_END, user_id, before, count - 1)
    else:
        found = await conn.fetchval(GET_DELIVERY_SCAN_END_TO, user_id, before, count - 1, endpoint_id)
    return found


# One that is sent again and again on demand keeps its newest attempts.
RECORD_ATTEMPT = """
WITH surplus AS (
    DELETE FROM jobs.webhook_attempts AS a
    WHERE a.user_id = $1 AND a.delivery_id = $2
      AND a.at <= (SELECT o.at FROM jobs.webhook_attempts AS o WHERE o.user_id = $1 AND o.delivery_id = $2
                   ORDER BY o.at DESC OFFSET $9 - 1 LIMIT 1)
), noted AS (
    INSERT INTO jobs.webhook_attempts (user_id, delivery_id, at, status, ms, error)
    SELECT d.user_id, d.id, now(), $4, $7, $5 FROM jobs.webhook_deliveries AS d WHERE d.user_id = $1 AND d.id = $2
    ON CONFLICT DO NOTHING
)
UPDATE jobs.webhook_deliveries AS d
SET state = $3, attempts = d.attempts + 1, last_status = $4, last_error = $5, last_response = $6, last_ms = $7,
    next_at = now() + $8, delivered_at = CASE WHEN $3 = 'delivered' THEN now() END
WHERE d.user_id = $1 AND d.id = $2
"""


async def record_attempt(
    tx: Tx,
    user_id: UserId,
    delivery_id: UUID,
    *,
    state: str,
    status: int | None,
    error: str | None,
    response: str | None,
    milliseconds: int,
    again_in: timedelta | None,
) -> None:
    """What became of one attempt."""
    await tx.execute(
        *(RECORD_ATTEMPT, user_id, delivery_id, state, status, error, response, milliseconds, again_in, KEPT_ATTEMPTS)
    )


FAIL_DELIVERY = """
UPDATE jobs.webhook_deliveries AS d SET state = 'failed', last_error = $3, next_at = NULL
WHERE d.user_id = $1 AND d.id = $2
"""


async def fail_delivery(tx: Tx, user_id: UserId, delivery_id: UUID, error: str) -> None:
    """Ends a delivery without an attempt; what is known of the last one stays."""
    await tx.execute(FAIL_DELIVERY, user_id, delivery_id, error)


LIST_DELIVERY_ATTEMPTS = """
SELECT a.at, a.status, a.ms, a.error FROM jobs.webhook_attempts AS a
WHERE a.user_id = $1 AND a.delivery_id = $2 ORDER BY a.at
"""


async def list_delivery_attempts(conn: ReadConn, user_id: UserId, delivery_id: UUID) -> list[DeliveryAttempt]:
    """The attempts of a delivery, oldest first; the newest `KEPT_ATTEMPTS` of them."""
    rows = await conn.fetch(LIST_DELIVERY_ATTEMPTS, user_id, delivery_id)
    return [DeliveryAttempt(**row) for row in rows]


# Each state is one range of an index; the events are looked up for the rows of the page alone.
LIST_ALL_DELIVERIES = """
SELECT d.id, d.user_id, d.endpoint_id, d.message_id, m.event_type, d.state, d.attempts, d.last_status, d.last_error,
       d.last_response, d.last_ms, d.next_at, d.created_at, d.delivered_at
FROM (
    SELECT f.id, f.user_id, f.endpoint_id, f.message_id, f.state, f.attempts, f.last_status, f.last_error,
           f.last_response, f.last_ms, f.next_at, f.created_at, f.delivered_at
    FROM unnest($1::text[]) AS s(state) CROSS JOIN LATERAL (
        SELECT w.id, w.user_id, w.endpoint_id, w.message_id, w.state, w.attempts, w.last_status, w.last_error,
               w.last_response, w.last_ms, w.next_at, w.created_at, w.delivered_at
        FROM jobs.webhook_deliveries AS w
        WHERE (w.state, w.id) < (s.state, coalesce($2::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff'))
          AND (w.state, w.id) >= (s.state, '00000000-0000-0000-0000-000000000000')
        ORDER BY w.state DESC, w.id DESC
        LIMIT $3
    ) AS f
    ORDER BY f.id DESC
    LIMIT $3
) AS d
CROSS JOIN LATERAL (
    SELECT w.event_type FROM jobs.webhook_messages AS w WHERE w.user_id = d.user_id AND w.id = d.message_id LIMIT 1
) AS m
ORDER BY d.id DESC
"""


async def list_all_deliveries(
    conn: ReadConn, states: Sequence[str], *, before: UUID | None, limit: int
) -> list[Delivery]:
    """The deliveries of all users in these states, newest first."""
    return [Delivery(**row) for row in await conn.fetch(LIST_ALL_DELIVERIES, states, before, limit)]


GET_OWNER_OF_DELIVERY = """
SELECT d.user_id FROM jobs.webhook_deliveries AS d
WHERE d.state = ANY('{pending,delivered,failed}'::text[]) AND d.id = $1
"""


async def get_owner_of_delivery(conn: ReadConn, delivery_id: UUID) -> UserId | None:
    user_id: UserId | None = await conn.fetchval(GET_OWNER_OF_DELIVERY, delivery_id)
    return user_id


# The next rows of the endpoint, whatever their state, so that a replay reads a bounded number of them at a time.
LIST_REPLAYED_DELIVERIES = """
SELECT n.id, n.state <> 'pending' AND ($5::text IS NULL OR n.state = $5) AND n.created_at >= $6
             AND ($7::timestamptz IS NULL OR n.created_at < $7) AS is_meant
FROM (SELECT d.id, d.state, d.created_at FROM jobs.webhook_deliveries AS d
      WHERE d.user_id = $1 AND d.endpoint_id = $2 AND d.id > $3 AND d.id < $4
      ORDER BY d.id LIMIT $8) AS n
ORDER BY n.id
"""


async def list_replayed_deliveries(
    conn: ReadConn,
    user_id: UserId,
    endpoint_id: UUID,
    *,
    after: UUID,
    end: UUID,
    state: str | None,
    since: datetime,
    until: datetime | None,
    limit: int,
) -> list[tuple[UUID, bool]]:
    """The next `limit` deliveries to an endpoint, oldest first, and of each whether it is to be sent again."""
    rows = await conn.fetch(LIST_REPLAYED_DELIVERIES, user_id, endpoint_id, after, end, state, since, until, limit)
    return [(row["id"], row["is_meant"]) for row in rows]


REOPEN_DELIVERIES = """
UPDATE jobs.webhook_deliveries AS d SET state = 'pending', attempts = 0, next_at = NULL, delivered_at = NULL
WHERE d.user_id = $1 AND d.id = ANY($2::uuid[]) AND d.state <> 'pending'
RETURNING d.id
"""


async def reopen_deliveries(tx: Tx, user_id: UserId, ids: Sequence[UUID]) -> list[UUID]:
    """Those of `ids` that were over and are pending now."""
    return [row["id"] for row in await tx.fetch(REOPEN_DELIVERIES, user_id, ids)]


REOPEN_DELIVERY = """
UPDATE jobs.webhook_deliveries AS d SET state = 'pending', attempts = 0, next_at = NULL, delivered_at = NULL
WHERE d.user_id = $1 AND d.id = $2
  AND (d.state = 'pending'
       OR (SELECT count(*) FROM (SELECT 1 FROM jobs.webhook_deliveries AS w
                                 WHERE w.user_id = $1 AND w.state = 'pending' LIMIT $3) AS counted) < $3)
  AND EXISTS (SELECT 1 FROM jobs.webhook_endpoints AS e
              WHERE e.user_id = $1 AND e.id = d.endpoint_id AND e.disabled_at IS NULL)
RETURNING d.id
"""


async def reopen_delivery(tx: Tx, user_id: UserId, delivery_id: UUID) -> bool:
    """Whether there was such a delivery to an endpoint in use, and room for it among the pending ones."""
    return await tx.fetchval(REOPEN_DELIVERY, user_id, delivery_id, MAX_PENDING) is not None


HASTEN_JOB = """
UPDATE jobs.jobs SET run_at = now(), is_due = true, attempt = 0, version = version + 1
WHERE user_id = $1 AND kind = $2 AND unique_key = $3 AND state = 0 AND dispatched_at IS NULL
"""


async def hasten_job(tx: Tx, user_id: UserId, kind: str, unique_key: str) -> None:
    """Has the relay bring a job that waits for its next attempt to a worker now, for its first one."""
    await tx.execute(HASTEN_JOB, user_id, kind, unique_key)


DELETE_OLD_MESSAGES = """
WITH old AS (
    SELECT m.user_id, m.id FROM jobs.webhook_messages AS m
    WHERE m.created_at < now() - make_interval(days => $1)
    ORDER BY m.created_at LIMIT $2
), gone AS (
    DELETE FROM jobs.webhook_deliveries AS d USING old WHERE d.user_id = old.user_id AND d.message_id = old.id
)
DELETE FROM jobs.webhook_messages AS m USING old WHERE m.user_id = old.user_id AND m.id = old.id
"""


async def delete_old_messages(tx: Tx, days: int, limit: int) -> int:
    """Deletes up to `limit` messages with their deliveries; answers how many."""
    return int((await tx.execute(DELETE_OLD_MESSAGES, days, limit)).removeprefix("DELETE "))
