"""Webhook endpoints: their events, secrets and breakers."""

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from app.jobs.records.webhooks import ADMIN_EVENTS, ALL_EVENTS, Endpoint, MatchingEndpoint
from app.kernel.database import ReadConn, Tx
from app.kernel.ids import UserId

INSERT_ENDPOINT = """
INSERT INTO jobs.webhook_endpoints (id, user_id, url, event_types, description, secret, created_at)
SELECT $1, $2, $3, $4, $5, $6, now()
WHERE (SELECT count(*) FROM jobs.webhook_endpoints WHERE user_id = $2) < $7
RETURNING id, user_id, url, event_types, description, secret, old_secret, old_secret_until, disabled_at,
          disabled_reason, failing_since, failures, open_until, created_at, now() AS read_at
"""


async def insert_endpoint(
    tx: Tx,
    *,
    endpoint_id: UUID,
    user_id: UserId,
    url: str,
    event_types: Sequence[str],
    description: str | None,
    secret: bytes,
    limit: int,
) -> Endpoint | None:
    """None: the user has `limit` endpoints already."""
    row = await tx.fetchrow(INSERT_ENDPOINT, endpoint_id, user_id, url, event_types, description, secret, limit)
    return None if row is None else Endpoint(**row)


LIST_ENDPOINTS = """
SELECT e.id, e.user_id, e.url, e.event_types, e.description, e.secret, e.old_secret, e.old_secret_until, e.disabled_at,
       e.disabled_reason, e.failing_since, e.failures, e.open_until, e.created_at, now() AS read_at
FROM jobs.webhook_endpoints AS e
WHERE e.user_id = $1
ORDER BY e.id
"""


async def list_endpoints(conn: ReadConn, user_id: UserId) -> list[Endpoint]:
    """All endpoints of a user, the oldest first."""
    return [Endpoint(**row) for row in await conn.fetch(LIST_ENDPOINTS, user_id)]


GET_ENDPOINT = """
SELECT e.id, e.user_id, e.url, e.event_types, e.description, e.secret, e.old_secret, e.old_secret_until, e.disabled_at,
       e.disabled_reason, e.failing_since, e.failures, e.open_until, e.created_at, now() AS read_at
FROM jobs.webhook_endpoints AS e
WHERE e.user_id = $1 AND e.id = $2
"""


async def get_endpoint(conn: ReadConn, user_id: UserId, endpoint_id: UUID) -> Endpoint | None:
    row = await conn.fetchrow(GET_ENDPOINT, user_id, endpoint_id)
    return None if row is None else Endpoint(**row)


LOCK_ENDPOINT = """
SELECT e.id, e.user_id, e.url, e.event_types, e.description, e.secret, e.old_secret, e.old_secret_until, e.disabled_at,
       e.disabled_reason, e.failing_since, e.failures, e.open_until, e.created_at, now() AS read_at
FROM jobs.webhook_endpoints AS e
WHERE e.user_id = $1 AND e.id = $2
FOR UPDATE
"""


async def lock_endpoint(tx: Tx, user_id: UserId, endpoint_id: UUID) -> Endpoint | None:
    """The endpoint as it stays until the transaction ends."""
    row = await tx.fetchrow(LOCK_ENDPOINT, user_id, endpoint_id)
    return None if row is None else Endpoint(**row)


LIST_WEBHOOK_SUBSCRIBERS = """
SELECT e.user_id FROM jobs.webhook_endpoints AS e WHERE e.disabled_at IS NULL
UNION
SELECT NULL FROM jobs.webhook_endpoints AS e WHERE e.disabled_at IS NULL AND e.event_types && $1::text[]
"""


async def list_webhook_subscribers(conn: ReadConn) -> list[UserId | None]:
    """All users with an endpoint that is in use, and None if one of them names an event of the installation."""
    return [row["user_id"] for row in await conn.fetch(LIST_WEBHOOK_SUBSCRIBERS, sorted(ADMIN_EVENTS))]


LIST_SUBSCRIBERS = """
SELECT DISTINCT e.user_id FROM jobs.webhook_endpoints AS e
WHERE e.disabled_at IS NULL AND $1::text = ANY(e.event_types)
"""


async def list_subscribers(conn: ReadConn, event_type: str) -> list[UserId]:
    """Users with an endpoint in use that names this event."""
    return [row["user_id"] for row in await conn.fetch(LIST_SUBSCRIBERS, event_type)]


UPDATE_ENDPOINT = """
UPDATE jobs.webhook_endpoints AS e
SET url = coalesce($3, e.url), event_types = coalesce($4, e.event_types),
    description = CASE WHEN $6::boolean THEN $5 ELSE e.description END
WHERE e.user_id = $1 AND e.id = $2
RETURNING id, user_id, url, event_types, description, secret, old_secret, old_secret_until, disabled_at,
          disabled_reason, failing_since, failures, open_until, created_at, now() AS read_at
"""


async def update_endpoint(
    tx: Tx,
    user_id: UserId,
    endpoint_id: UUID,
    *,
    url: str | None,
    event_types: Sequence[str] | None,
    description: str | None,
    has_description: bool,
) -> Endpoint | None:
    """None changes nothing, except a description that is meant."""
    row = await tx.fetchrow(UPDATE_ENDPOINT, user_id, endpoint_id, url, event_types, description, has_description)
    return None if row is None else Endpoint(**row)


DELETE_ENDPOINT = """
DELETE FROM jobs.webhook_endpoints WHERE user_id = $1 AND id = $2
"""


async def delete_endpoint(tx: Tx, user_id: UserId, endpoint_id: UUID) -> bool:
    """Whether there was one."""
    return await tx.execute(DELETE_ENDPOINT, user_id, endpoint_id) == "DELETE 1"


ROTATE_SECRET = """
UPDATE jobs.webhook_endpoints AS e SET old_secret = e.secret, old_secret_until = now() + $4, secret = $3
WHERE e.user_id = $1 AND e.id = $2
RETURNING id, user_id, url, event_types, description, secret, old_secret, old_secret_until, disabled_at,
          disabled_reason, failing_since, failures, open_until, created_at, now() AS read_at
"""


async def rotate_secret(
    tx: Tx, user_id: UserId, endpoint_id: UUID, secret: bytes, old_secret_ttl: timedelta
) -> Endpoint | None:
    row = await tx.fetchrow(ROTATE_SECRET, user_id, endpoint_id, secret, old_secret_ttl)
    return None if row is None else Endpoint(**row)


# The theoretical arrival time of GCRA (ITU-T I.371): the row alone counts, for all processes, and nothing is deleted.
TAKE_CALL = """
UPDATE jobs.webhook_endpoints AS e SET calls_until = greatest(e.calls_until, now()) + $3::interval
WHERE e.user_id = $1 AND e.id = $2
  AND (e.calls_until IS NULL OR e.calls_until <= now() + $3::interval * ($4::integer - 1))
RETURNING e.id
"""


async def take_call(tx: Tx, user_id: UserId, endpoint_id: UUID, *, every: timedelta, burst: int) -> bool:
    """Whether the endpoint has a call left, which is then used: one comes back `every` so often, up to `burst`. False
    also where there is no such endpoint.
    """
    return await tx.fetchval(TAKE_CALL, user_id, endpoint_id, every, burst) is not None


ENABLE_ENDPOINT = """
UPDATE jobs.webhook_endpoints
SET disabled_at = NULL, disabled_reason = NULL, failing_since = NULL, failures = 0, open_until = NULL
WHERE user_id = $1 AND id = $2 AND disabled_at IS NOT NULL
RETURNING id, user_id, url, event_types, description, secret, old_secret, old_secret_until, disabled_at,
          disabled_reason, failing_since, failures, open_until, created_at, now() AS read_at
"""


async def enable_endpoint(tx: Tx, user_id: UserId, endpoint_id: UUID) -> Endpoint | None:
    """Also forgives what has failed so far. None: the endpoint is not disabled, and keeps its breaker."""
    row = await tx.fetchrow(ENABLE_ENDPOINT, user_id, endpoint_id)
    return None if row is None else Endpoint(**row)


DISABLE_ENDPOINTS = """
UPDATE jobs.webhook_endpoints SET disabled_at = now(), disabled_reason = $2
WHERE user_id = $1 AND disabled_at IS NULL
"""


async def disable_endpoints(tx: Tx, user_id: UserId, reason: str) -> None:
    """All endpoints of a user; `reason` is for the user."""
    await tx.execute(DISABLE_ENDPOINTS, user_id, reason)


RECORD_SUCCESS = """
UPDATE jobs.webhook_endpoints SET failures = 0, failing_since = NULL, open_until = NULL
WHERE user_id = $1 AND id = $2 AND failures > 0
"""


async def record_success(tx: Tx, user_id: UserId, endpoint_id: UUID) -> None:
    await tx.execute(RECORD_SUCCESS, user_id, endpoint_id)


RECORD_FAILURE = """
UPDATE jobs.webhook_endpoints AS e
SET failures = e.failures + 1, failing_since = coalesce(e.failing_since, now()),
    open_until = coalesce(now() + $3, e.open_until),
    disabled_at = CASE WHEN $4::text IS NULL THEN e.disabled_at ELSE coalesce(e.disabled_at, now()) END,
    disabled_reason = coalesce(e.disabled_reason, $4::text)
WHERE e.user_id = $1 AND e.id = $2
"""


async def record_failure(
    tx: Tx, user_id: UserId, endpoint_id: UUID, *, open_for: timedelta | None, disabled_reason: str | None
) -> None:
    """Counts a failure, and opens the breaker or disables the endpoint where that is due."""
    await tx.execute(RECORD_FAILURE, user_id, endpoint_id, open_for, disabled_reason)


TAKE_PROBE = """
UPDATE jobs.webhook_endpoints SET open_until = now() + $3
WHERE user_id = $1 AND id = $2 AND open_until <= now()
RETURNING id
"""


async def take_probe(tx: Tx, user_id: UserId, endpoint_id: UUID, time: timedelta) -> bool:
    """Whether this delivery is the one that tries an endpoint whose breaker was open; no other may for so long."""
    return await tx.fetchval(TAKE_PROBE, user_id, endpoint_id, time) is not None


COUNT_OPEN_BREAKERS = """
SELECT count(*) FROM jobs.webhook_endpoints AS e WHERE e.open_until > now() AND e.disabled_at IS NULL
"""


async def count_open_breakers(conn: ReadConn) -> int:
    """How many endpoints are left alone for the moment."""
    count: int = await conn.fetchval(COUNT_OPEN_BREAKERS)
    return count


LIST_MATCHING_ENDPOINTS = """
SELECT e.id, e.user_id, e.event_types FROM jobs.webhook_endpoints AS e
WHERE e.user_id = ANY($1::uuid[]) AND e.disabled_at IS NULL AND e.event_types && $2::text[]
"""


async def list_matching_endpoints(
    conn: ReadConn, user_ids: Sequence[UserId], event_types: Sequence[str]
) -> list[MatchingEndpoint]:
    """Active endpoints of these users that want any of these events."""
    rows = await conn.fetch(LIST_MATCHING_ENDPOINTS, user_ids, [*event_types, ALL_EVENTS])
    return [MatchingEndpoint(**row) for row in rows]
