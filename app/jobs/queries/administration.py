"""Queues and everybody's jobs."""

from datetime import datetime
from uuid import UUID

from app.jobs.records import (
    AdminJob,
    FailedAttempt,
    StateFilter,
    Transition,
)
from app.kernel.database import ReadConn, Tx

SET_QUEUE_PAUSED = """
INSERT INTO jobs.lanes AS l (lane, paused_at) VALUES ($1, CASE WHEN $2::boolean THEN now() END)
ON CONFLICT (lane) DO UPDATE SET paused_at = CASE WHEN $2::boolean THEN coalesce(l.paused_at, now()) END
"""


async def set_queue_paused(tx: Tx, queue: str, *, paused: bool) -> None:
    await tx.execute(SET_QUEUE_PAUSED, queue, paused)


LIST_ALL_JOBS = """
SELECT j.id, j.user_id, j.kind, j.lane AS queue, j.state, j.attempt, j.max_attempts, j.rescues,
       j.run_at <= now() AS is_due, j.worker_id, j.error, j.created_at, j.started_at, j.finished_at
FROM jobs.jobs AS j
WHERE j.id < coalesce($1::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff')
  AND j.id >= coalesce($6::uuid, '00000000-0000-0000-0000-000000000000')
  AND ($2::smallint IS NULL OR j.state = $2)
  AND ($3::boolean IS NULL OR (j.attempt > 0) = $3)
  AND ($4::boolean IS NULL OR (j.run_at > now()) = $4)
ORDER BY j.id DESC
LIMIT $5
"""


async def list_all_jobs(
    conn: ReadConn, *, before: UUID | None, state: StateFilter | None, limit: int, scan_end: UUID | None = None
) -> list[AdminJob]:
    """Everybody's jobs, newest first, down to `scan_end`."""
    rows = await conn.fetch(
        LIST_ALL_JOBS,
        before,
        None if state is None else state.state,
        None if state is None else state.attempted,
        None if state is None else state.future,
        limit,
        scan_end,
    )
    return [AdminJob(**row) for row in rows]


GET_SCAN_END_OF_ALL = """
SELECT j.id FROM jobs.jobs AS j
WHERE j.id < coalesce($1::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff')
ORDER BY j.id DESC OFFSET $2 LIMIT 1
"""


async def get_scan_end(conn: ReadConn, *, before: UUID | None, count: int) -> UUID | None:
    """The last of the next `count` jobs; None: there are fewer."""
    found: UUID | None = await conn.fetchval(GET_SCAN_END_OF_ALL, before, count - 1)
    return found


GET_ANY_JOB = """
SELECT j.id, j.user_id, j.kind, j.lane AS queue, j.state, j.attempt, j.max_attempts, j.rescues,
       j.run_at <= now() AS is_due, j.worker_id, j.error, j.created_at, j.started_at, j.finished_at
FROM jobs.jobs AS j
WHERE j.id = $1
"""


async def get_any_job(conn: ReadConn, job_id: UUID) -> AdminJob | None:
    row = await conn.fetchrow(GET_ANY_JOB, job_id)
    return None if row is None else AdminJob(**row)


LIST_ATTEMPTS = """
SELECT a.n, a.started_at, a.ended_at, a.outcome, a.error, a.worker_id FROM jobs.attempts AS a
WHERE a.job_id = $1 ORDER BY a.n
"""


async def list_attempts(conn: ReadConn, job_id: UUID) -> list[FailedAttempt]:
    """The failed runs of a job, oldest first."""
    return [FailedAttempt(**row) for row in await conn.fetch(LIST_ATTEMPTS, job_id)]


REQUEUE_FAILED_JOBS = """
WITH failed AS (
    SELECT id FROM jobs.jobs
    WHERE state = 3 AND unique_key IS NULL AND ($1::text IS NULL OR kind = $1) AND finished_at >= $2
    ORDER BY finished_at LIMIT $3 FOR UPDATE SKIP LOCKED
)
UPDATE jobs.jobs AS j
SET state = 0, attempt = 0, rescues = 0, run_at = now(), is_due = true, postponed_since = NULL, finished_at = NULL,
    error = NULL, result = NULL, progress = NULL, cancel_requested_at = NULL, dispatched_at = now(),
    version = j.version + 1
FROM failed
WHERE j.id = failed.id
RETURNING j.id, j.user_id, j.kind, j.lane AS queue, j.priority, j.state, j.version, j.trace_parent
"""


async def requeue_failed_jobs(tx: Tx, *, kind: str | None, since: datetime, limit: int) -> list[Transition]:
    """Starts failed jobs over, those that failed first first. One with a unique key is left to be retried singly."""
    return [Transition(**row) for row in await tx.fetch(REQUEUE_FAILED_JOBS, kind, since, limit)]
