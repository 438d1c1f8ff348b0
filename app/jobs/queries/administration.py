"""Queues and everybody's jobs."""

from datetime import datetime
from uuid import UUID

from app.jobs.records import AdminJob, FailedAttempt, Transition
from app.jobs.records.administration import JobDetail
from app.kernel.database import ReadConn, Tx

SET_QUEUE_PAUSED = """
INSERT INTO jobs.lanes AS l (lane, paused_at) VALUES ($1, CASE WHEN $2::boolean THEN now() END)
ON CONFLICT (lane) DO UPDATE SET paused_at = CASE WHEN $2::boolean THEN coalesce(l.paused_at, now()) END
"""


async def set_queue_paused(tx: Tx, queue: str, *, paused: bool) -> None:
    await tx.execute(SET_QUEUE_PAUSED, queue, paused)


GET_ANY_JOB = """
SELECT j.id, j.user_id, j.kind, j.lane AS queue, j.state, j.attempt, j.max_attempts, j.rescues,
       j.run_at <= now() AS is_due, j.worker_id, j.error, j.created_at, j.started_at, j.finished_at
FROM jobs.jobs AS j
WHERE j.id = $1
"""


async def get_any_job(conn: ReadConn, job_id: UUID) -> AdminJob | None:
    row = await conn.fetchrow(GET_ANY_JOB, job_id)
    return None if row is None else AdminJob(**row)


# Beside the failed runs, the one that goes on, has succeeded or was cancelled, which only the job itself tells.
GET_JOB_DETAIL = """
SELECT j.id, j.user_id, j.kind, j.lane AS queue, j.state, j.attempt, j.max_attempts, j.rescues,
       j.run_at <= now() AS is_due, j.worker_id, j.args, j.progress, j.result, j.error,
       (SELECT coalesce(jsonb_agg(jsonb_build_object('n', r.n, 'worker', r.worker_id, 'error', r.error,
                                                     'started_at', to_char(r.started_at AT TIME ZONE 'UTC',
                                                                           'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
                                                     'finished_at', to_char(r.ended_at AT TIME ZONE 'UTC',
                                                                            'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))
                                  ORDER BY r.n), '[]')
        FROM ((SELECT a.n, a.started_at, a.ended_at, a.worker_id, a.error FROM jobs.attempts AS a
               WHERE a.job_id = j.id ORDER BY a.n DESC LIMIT $2)
              UNION ALL
              SELECT coalesce(max(a.n), 0) + 1, j.started_at, j.finished_at, j.worker_id,
                     CASE WHEN j.state = 4 THEN j.error END
              FROM jobs.attempts AS a WHERE a.job_id = j.id
              HAVING j.state IN (1, 2, 4) AND j.attempt > 0
                     AND j.started_at > coalesce(max(a.started_at), '-infinity')) AS r) AS attempts,
       (SELECT coalesce(jsonb_agg(jsonb_build_object('name', a.name, 'content_type', a.content_type, 'size', a.size,
                                                     'sha256', encode(a.sha256, 'hex'),
                                                     'expires_at', to_char(a.expires_at AT TIME ZONE 'UTC',
                                                                           'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))
                                  ORDER BY a.name), '[]')
        FROM jobs.artifacts AS a WHERE a.job_id = j.id AND a.deleted_at IS NULL) AS artifacts,
       j.trace_parent, j.run_at, j.created_at, j.started_at, j.finished_at
FROM jobs.jobs AS j
WHERE j.id = $1
"""


async def get_job_detail(conn: ReadConn, job_id: UUID, attempts: int) -> JobDetail | None:
    """A job with the newest of its runs, at most one more than `attempts`."""
    row = await conn.fetchrow(GET_JOB_DETAIL, job_id, attempts)
    return None if row is None else JobDetail(**row)


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
