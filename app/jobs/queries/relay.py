"""What the relay asks and moves."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from app.jobs.records import (
    DispatchedJob,
    LaneDepth,
    Transition,
    WaitingJob,
)
from app.kernel.database import DirectConn, ReadConn, Tx

RESCUE_JOBS = """
WITH expired AS (
    SELECT id, started_at, worker_id,
           jsonb_build_object('code', 'worker_lost', 'message', 'The worker that ran this job disappeared.') AS error
    FROM jobs.jobs WHERE state = 1 AND lease_until < now()
    ORDER BY lease_until LIMIT $2 FOR UPDATE SKIP LOCKED
), noted AS (
    INSERT INTO jobs.attempts (job_id, n, started_at, ended_at, outcome, error, worker_id)
    SELECT e.id, (SELECT coalesce(max(a.n), 0) + 1 FROM jobs.attempts AS a WHERE a.job_id = e.id), e.started_at, now(),
           'lost', e.error, e.worker_id
    FROM expired AS e
)
UPDATE jobs.jobs AS j
SET rescues = j.rescues + 1, version = j.version + 1,
    state = CASE WHEN j.cancel_requested_at IS NOT NULL THEN 4
                 WHEN j.rescues + 1 >= $1 OR j.attempt >= j.max_attempts THEN 3 ELSE 0 END,
    error = expired.error,
    finished_at = CASE WHEN j.cancel_requested_at IS NOT NULL OR j.rescues + 1 >= $1 OR j.attempt >= j.max_attempts
                       THEN now() END,
    run_at = now(), dispatched_at = now(), run_token = NULL, worker_id = NULL, lease_until = NULL
FROM expired
WHERE j.id = expired.id
RETURNING j.id, j.user_id, j.kind, j.lane, j.priority, j.state, j.version, j.trace_parent
"""


async def rescue_jobs(tx: Tx, *, max_rescues: int, limit: int) -> list[Transition]:
    """Takes jobs away from workers that let their lease end; a job that killed too many of them fails."""
    return [Transition(**row) for row in await tx.fetch(RESCUE_JOBS, max_rescues, limit)]


# Users take turns: the first job of each, then the second of each. The recursion steps from one user to the next
# through the index, however many jobs each has.
TAKE_WAITING_JOBS = """
WITH RECURSIVE turns AS (
    (SELECT j.user_id, 1 AS number FROM jobs.jobs AS j
     WHERE j.lane = $1 AND j.state = 0 AND j.dispatched_at IS NULL AND j.user_id > $3
     ORDER BY j.user_id LIMIT 1)
    UNION ALL
    SELECT (SELECT j.user_id FROM jobs.jobs AS j
            WHERE j.lane = $1 AND j.state = 0 AND j.dispatched_at IS NULL AND j.user_id > t.user_id
            ORDER BY j.user_id LIMIT 1), t.number + 1
    FROM turns AS t WHERE t.user_id IS NOT NULL AND t.number < $4
), of_users AS (
    SELECT p.id, p.user_id, p.priority, p.run_at FROM turns AS t CROSS JOIN LATERAL (
        SELECT j.id, j.user_id, j.priority, j.run_at FROM jobs.jobs AS j
        WHERE j.lane = $1 AND j.user_id = t.user_id AND j.state = 0 AND j.dispatched_at IS NULL AND j.run_at <= now()
        ORDER BY j.priority, j.run_at
        LIMIT $2
        FOR UPDATE SKIP LOCKED
    ) AS p
), of_the_system AS (
    SELECT j.id, j.user_id, j.priority, j.run_at FROM jobs.jobs AS j
    WHERE j.lane = $1 AND j.user_id IS NULL AND j.state = 0 AND j.dispatched_at IS NULL AND j.run_at <= now()
    ORDER BY j.priority, j.run_at
    LIMIT $2
    FOR UPDATE SKIP LOCKED
), due AS (
    SELECT id, row_number() OVER (PARTITION BY user_id ORDER BY priority, run_at) AS turn FROM of_users
    UNION ALL
    SELECT id, 0 FROM of_the_system
), chosen AS (
    SELECT id, turn FROM due ORDER BY turn LIMIT $2
), marked AS (
    UPDATE jobs.jobs AS j SET dispatched_at = now() FROM chosen AS c WHERE j.id = c.id
    RETURNING j.id, j.user_id, j.lane, j.priority, c.turn
)
SELECT id, user_id, lane, priority FROM marked ORDER BY turn
"""


async def take_waiting_jobs(tx: Tx, lane: str, limit: int, *, after: UUID, users: int) -> list[WaitingJob]:
    """Marks due jobs of a lane as dispatched, of up to `users` users whose ids lie behind `after`."""
    return [WaitingJob(**row) for row in await tx.fetch(TAKE_WAITING_JOBS, lane, limit, after, users)]


GET_NEXT_RUN_AT = """
SELECT j.run_at FROM jobs.jobs AS j WHERE j.state = 0 AND j.dispatched_at IS NULL ORDER BY j.run_at LIMIT 1
"""


async def get_next_run_at(conn: ReadConn) -> datetime | None:
    """When the next job falls due that is not in Redis."""
    run_at: datetime | None = await conn.fetchval(GET_NEXT_RUN_AT)
    return run_at


LIST_WAITING_LANES = """
SELECT DISTINCT j.lane FROM jobs.jobs AS j WHERE j.state = 0 AND j.dispatched_at IS NULL AND j.run_at <= now()
"""


async def list_waiting_lanes(conn: ReadConn) -> list[str]:
    """Lanes that have due jobs outside Redis."""
    return [row["lane"] for row in await conn.fetch(LIST_WAITING_LANES)]


LIST_DISPATCHED_JOBS = """
SELECT j.id, j.user_id, j.lane, j.priority, j.dispatched_at FROM jobs.jobs AS j
WHERE j.lane = $1 AND j.state = 0 AND (j.dispatched_at, j.id) > ($2, $3::uuid) AND j.dispatched_at < $4
ORDER BY j.dispatched_at, j.id
LIMIT $5
"""


async def list_dispatched_jobs(
    conn: ReadConn, lane: str, *, after: tuple[datetime, UUID], before: datetime, limit: int
) -> list[DispatchedJob]:
    """Queued jobs that went to Redis before a moment, from behind the one that `after` names by moment and id."""
    return [DispatchedJob(**row) for row in await conn.fetch(LIST_DISPATCHED_JOBS, lane, *after, before, limit)]


UNDISPATCH_JOBS = """
UPDATE jobs.jobs SET dispatched_at = NULL WHERE id = ANY($1::uuid[]) AND state = 0
"""


async def undispatch_jobs(tx: Tx, ids: Sequence[UUID]) -> None:
    """Hands ids back to the relay because Redis does not have them."""
    await tx.execute(UNDISPATCH_JOBS, ids)


# A row that is locked is being claimed or changed; if it stays queued, the sweep misses its id.
UNDISPATCH_SOME = """
UPDATE jobs.jobs SET dispatched_at = NULL
WHERE id IN (SELECT j.id FROM jobs.jobs AS j WHERE j.state = 0 AND j.dispatched_at IS NOT NULL
             LIMIT $1 FOR UPDATE SKIP LOCKED)
"""


async def undispatch_some(tx: Tx, limit: int) -> int:
    """Hands up to `limit` queued jobs back to the relay; answers how many."""
    return int((await tx.execute(UNDISPATCH_SOME, limit)).removeprefix("UPDATE "))


GET_EPOCH = """
SELECT e.epoch FROM jobs.epoch AS e
"""


async def get_epoch(conn: ReadConn) -> UUID | None:
    epoch: UUID | None = await conn.fetchval(GET_EPOCH)
    return epoch


SET_EPOCH = """
INSERT INTO jobs.epoch (epoch) VALUES ($1) ON CONFLICT (singleton) DO UPDATE SET epoch = excluded.epoch
"""


async def set_epoch(tx: Tx, epoch: UUID) -> None:
    await tx.execute(SET_EPOCH, epoch)


LIST_LANE_DEPTHS = """
WITH waiting AS (
    SELECT lane, count(*) AS waiting, min(run_at) AS oldest_run_at FROM jobs.jobs
    WHERE state = 0 AND run_at <= now() GROUP BY lane
), running AS (
    SELECT lane, count(*) AS running FROM jobs.jobs WHERE state = 1 GROUP BY lane
), finished AS (
    SELECT lane, count(*) AS finished FROM jobs.jobs
    WHERE state >= 2 AND finished_at > now() - interval '1 minute' GROUP BY lane
), known AS (
    SELECT unnest($1::text[]) AS lane UNION SELECT lane FROM waiting UNION SELECT lane FROM running
)
SELECT k.lane, p.paused_at IS NOT NULL AS paused, coalesce(w.waiting, 0) AS waiting, w.oldest_run_at,
       coalesce(r.running, 0) AS running, coalesce(f.finished, 0) AS finished
FROM known AS k
LEFT JOIN waiting AS w ON w.lane = k.lane
LEFT JOIN running AS r ON r.lane = k.lane
LEFT JOIN finished AS f ON f.lane = k.lane
LEFT JOIN jobs.lanes AS p ON p.lane = k.lane
ORDER BY k.lane
"""


async def list_lane_depths(conn: ReadConn, lanes: Sequence[str]) -> list[LaneDepth]:
    """These lanes, and all others in which something waits or runs."""
    return [LaneDepth(**row) for row in await conn.fetch(LIST_LANE_DEPTHS, lanes)]


LIMIT_IDLE_SESSION = """
SELECT set_config('idle_session_timeout', ($1::float8 * 1000)::bigint::text, false)
"""


async def limit_idle_session(conn: DirectConn, seconds: float) -> None:
    """Lets Postgres end this session when it asks nothing for so long."""
    await conn.fetchval(LIMIT_IDLE_SESSION, seconds)


TRY_LEAD = """
SELECT pg_try_advisory_lock(hashtextextended('jobs.relay', 0))
"""


async def try_lead(conn: DirectConn) -> bool:
    """Whether this session is now the one that runs the relay."""
    return bool(await conn.fetchval(TRY_LEAD))
