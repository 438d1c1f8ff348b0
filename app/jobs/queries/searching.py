"""The search for jobs of all users, and what is done with many of them at once."""

from collections.abc import Sequence
from uuid import UUID

from app.jobs.records import AdminJob, State, Transition
from app.jobs.records.administration import JobFilter
from app.kernel.database import ReadConn, Tx

# Each filter has an index that it begins with: none of them the primary key, a user that of the user's jobs in each
# state, an error that of failed runs, and all others that of the queues, kinds and states, whose pairs of queue and
# kind the recursion finds by skipping from one to the next. Only the parts of the union that the filter needs are run.
# Conditions are ranges of an index for the reason that `LIST_JOBS` gives, and each range has a limit of its own, so
# that PostgreSQL reads it in the order of the index, whatever it believes of the other conditions.
_RANGES = """
WITH RECURSIVE pairs AS (
    SELECT ''::text AS lane, ''::text AS kind
    UNION ALL
    SELECT n.lane, n.kind FROM pairs AS p CROSS JOIN LATERAL (
        SELECT j.lane, j.kind FROM jobs.jobs AS j
        WHERE (j.lane, j.kind) > (p.lane, p.kind)
        ORDER BY j.lane, j.kind LIMIT 1
    ) AS n
), ranges AS (
    SELECT p.lane, p.kind, s.state
    FROM pairs AS p CROSS JOIN unnest(coalesce($3::smallint[], '{0,1,2,3,4}')) AS s(state)
    WHERE ($4::text IS NULL OR p.lane = $4) AND ($5::text IS NULL OR p.kind = $5)
      AND $6::uuid IS NULL AND $7::text IS NULL
      AND ($3::smallint[] IS NOT NULL OR $4::text IS NOT NULL OR $5::text IS NOT NULL)
)"""
_FOUND = """, found AS (
    (
        SELECT j.id, j.state, j.lane, j.kind, j.attempt, j.run_at, j.created_at, j.error ->> 'code' AS error
        FROM jobs.jobs AS j
        WHERE $3::smallint[] IS NULL AND $4::text IS NULL AND $5::text IS NULL AND $6::uuid IS NULL AND $7::text IS NULL
          AND j.id < $1 AND j.id >= $2
        ORDER BY j.id DESC
        LIMIT $12
    ) UNION ALL (
        SELECT f.id, f.state, f.lane, f.kind, f.attempt, f.run_at, f.created_at, f.error
        FROM ranges AS r CROSS JOIN LATERAL (
            SELECT j.id, j.state, j.lane, j.kind, j.attempt, j.run_at, j.created_at, j.error ->> 'code' AS error
            FROM jobs.jobs AS j
            WHERE (j.lane, j.kind, j.state, j.id) < (r.lane, r.kind, r.state, $1)
              AND (j.lane, j.kind, j.state, j.id) >= (r.lane, r.kind, r.state, $2)
            ORDER BY j.lane DESC, j.kind DESC, j.state DESC, j.id DESC
            LIMIT $12
        ) AS f
    ) UNION ALL (
        SELECT f.id, f.state, f.lane, f.kind, f.attempt, f.run_at, f.created_at, f.error
        FROM unnest(coalesce($3::smallint[], '{0,1,2,3,4}')) AS s(state) CROSS JOIN LATERAL (
            SELECT j.id, j.state, j.lane, j.kind, j.attempt, j.run_at, j.created_at, j.error ->> 'code' AS error
            FROM jobs.jobs AS j
            WHERE (j.user_id, j.state, j.id) < ($6, s.state, $1) AND (j.user_id, j.state, j.id) >= ($6, s.state, $2)
            ORDER BY j.user_id DESC, j.state DESC, j.id DESC
            LIMIT $12
        ) AS f
        WHERE $6::uuid IS NOT NULL
    ) UNION ALL (
        SELECT j.id, j.state, j.lane, j.kind, j.attempt, j.run_at, j.created_at, j.error ->> 'code' AS error
        FROM jobs.jobs AS j
        WHERE $6::uuid IS NULL AND j.error IS NOT NULL
          AND (j.error ->> 'code', j.id) < ($7, $1) AND (j.error ->> 'code', j.id) >= ($7, $2)
        ORDER BY j.error ->> 'code' DESC, j.id DESC
        LIMIT $12
    )
)"""
# What an index does not tell is asked of each row.
_MEANT = """    SELECT f.id FROM found AS f
    WHERE ($3::smallint[] IS NULL OR f.state = ANY($3))
      AND ($4::text IS NULL OR f.lane = $4) AND ($5::text IS NULL OR f.kind = $5)
      AND ($7::text IS NULL OR f.error = $7)
      AND ($8::boolean IS NULL OR (f.attempt > 0) = $8)
      AND ($9::boolean IS NULL OR (f.run_at > now()) = $9)
      AND ($10::timestamptz IS NULL OR f.created_at >= $10)
      AND ($11::timestamptz IS NULL OR f.created_at < $11)
"""
SEARCH_JOBS = (
    _RANGES
    + _FOUND
    + """, newest AS (
"""
    + _MEANT
    + """    ORDER BY f.id DESC
    LIMIT $13
)
SELECT j.id, j.user_id, j.kind, j.lane AS queue, j.state, j.attempt, j.max_attempts, j.rescues,
       j.run_at <= now() AS is_due, j.worker_id, j.error, j.created_at, j.started_at, j.finished_at
FROM newest AS n JOIN jobs.jobs AS j ON j.id = n.id
ORDER BY j.id DESC
"""
)


async def search_jobs(
    conn: ReadConn,
    wanted: JobFilter,
    *,
    states: Sequence[State] | None,
    before: UUID | None,
    limit: int,
    scan_end: UUID | None = None,
    scanned: int | None = None,
) -> list[AdminJob]:
    """The jobs that are meant, newest first, down to `scan_end`; in these stored states, None: in any.

    `scanned`: how many jobs of each range are read; `limit` of them, where the filter is exact.
    """
    rows = await conn.fetch(SEARCH_JOBS, *_values(wanted, states, before, scan_end), scanned or limit, limit)
    return [AdminJob(**row) for row in rows]


# The same, of which the index alone is read.
_FOUND_END = """, found AS (
    (
        SELECT j.id
        FROM jobs.jobs AS j
        WHERE $3::smallint[] IS NULL AND $4::text IS NULL AND $5::text IS NULL AND $6::uuid IS NULL AND $7::text IS NULL
          AND j.id < $1 AND j.id >= $2
        ORDER BY j.id DESC
        OFFSET $8 LIMIT 1
    ) UNION ALL (
        SELECT f.id FROM ranges AS r CROSS JOIN LATERAL (
            SELECT j.id
            FROM jobs.jobs AS j
            WHERE (j.lane, j.kind, j.state, j.id) < (r.lane, r.kind, r.state, $1)
              AND (j.lane, j.kind, j.state, j.id) >= (r.lane, r.kind, r.state, $2)
            ORDER BY j.lane DESC, j.kind DESC, j.state DESC, j.id DESC
            OFFSET $8 LIMIT 1
        ) AS f
    ) UNION ALL (
        SELECT f.id
        FROM unnest(coalesce($3::smallint[], '{0,1,2,3,4}')) AS s(state) CROSS JOIN LATERAL (
            SELECT j.id
            FROM jobs.jobs AS j
            WHERE (j.user_id, j.state, j.id) < ($6, s.state, $1) AND (j.user_id, j.state, j.id) >= ($6, s.state, $2)
            ORDER BY j.user_id DESC, j.state DESC, j.id DESC
            OFFSET $8 LIMIT 1
        ) AS f
        WHERE $6::uuid IS NOT NULL
    ) UNION ALL (
        SELECT j.id
        FROM jobs.jobs AS j
        WHERE $6::uuid IS NULL AND j.error IS NOT NULL
          AND (j.error ->> 'code', j.id) < ($7, $1) AND (j.error ->> 'code', j.id) >= ($7, $2)
        ORDER BY j.error ->> 'code' DESC, j.id DESC
        OFFSET $8 LIMIT 1
    )
)
SELECT f.id FROM found AS f ORDER BY f.id DESC LIMIT 1
"""
GET_SEARCH_END = _RANGES + _FOUND_END


async def get_search_end(
    conn: ReadConn, wanted: JobFilter, *, states: Sequence[State] | None, before: UUID | None, count: int
) -> UUID | None:
    """How far down a search reads that reads at most `count` jobs of each range; None: to the end."""
    values = _values(wanted, states, before, None)[:7]
    found: UUID | None = await conn.fetchval(GET_SEARCH_END, *values, count - 1)
    return found


COUNT_JOBS = (
    _RANGES
    + _FOUND
    + """
SELECT count(*) FROM (
"""
    + _MEANT
    + """    LIMIT $12
) AS counted
"""
)


async def count_jobs(conn: ReadConn, wanted: JobFilter, *, states: Sequence[State] | None, limit: int) -> int:
    """How many jobs are meant, counted up to `limit` among as many of each range."""
    count: int = await conn.fetchval(COUNT_JOBS, *_values(wanted, states, None, None), limit)
    return count


def _values(
    wanted: JobFilter, states: Sequence[State] | None, before: UUID | None, scan_end: UUID | None
) -> tuple[object, ...]:
    narrow = wanted.state_filter
    return (
        wanted.end_id if before is None else min(before, wanted.end_id),
        scan_end or wanted.lowest_id,
        states,
        wanted.queue,
        wanted.kind,
        wanted.user_id,
        wanted.error,
        None if narrow is None else narrow.attempted,
        None if narrow is None else narrow.future,
        wanted.since,
        wanted.until,
    )


# Rows are locked in the order in which heartbeats and ends lock them. Of failed jobs with one unique key the newest is
# started over, if none of them lives. The relay brings them to workers, so that their users take turns.
REQUEUE_JOBS = """
WITH locked AS (
    SELECT j.id, j.user_id, j.kind, j.unique_key FROM jobs.jobs AS j
    WHERE j.id = ANY($1::uuid[]) AND j.state = ANY($2::smallint[]) AND j.state IN (3, 4)
    ORDER BY j.id FOR UPDATE
), chosen AS (
    SELECT l.id FROM locked AS l
    WHERE l.unique_key IS NULL
       OR (NOT EXISTS (SELECT 1 FROM locked AS n
                       WHERE n.user_id IS NOT DISTINCT FROM l.user_id AND n.kind = l.kind
                         AND n.unique_key = l.unique_key AND n.id > l.id)
           AND NOT EXISTS (SELECT 1 FROM jobs.jobs AS k
                           WHERE k.user_id IS NOT DISTINCT FROM l.user_id AND k.kind = l.kind
                             AND k.unique_key = l.unique_key AND k.state < 2))
)
UPDATE jobs.jobs AS j
SET state = 0, attempt = 0, rescues = 0, run_at = now(), is_due = true, postponed_since = NULL, finished_at = NULL,
    error = NULL, result = NULL, progress = NULL, cancel_requested_at = NULL, dispatched_at = NULL,
    version = j.version + 1
FROM chosen AS c
WHERE j.id = c.id
RETURNING j.id, j.user_id, j.kind, j.lane AS queue, j.priority, j.state, j.version, j.trace_parent
"""


async def requeue_jobs(tx: Tx, ids: Sequence[UUID], states: Sequence[State]) -> list[Transition]:
    """Starts those of `ids` over that have failed or were cancelled and are in one of `states` still.

    Raises ConstraintViolated where a job with the unique key of one of them was put in just now.
    """
    return [Transition(**row) for row in await tx.fetch(REQUEUE_JOBS, ids, states)]


CANCEL_JOBS = """
WITH locked AS (
    SELECT j.id FROM jobs.jobs AS j
    WHERE j.id = ANY($1::uuid[]) AND j.state = ANY($2::smallint[]) AND j.state < 2 AND j.cancel_requested_at IS NULL
    ORDER BY j.id FOR UPDATE
)
UPDATE jobs.jobs AS j
SET state = CASE WHEN j.state = 0 THEN 4 ELSE j.state END, finished_at = CASE WHEN j.state = 0 THEN now() END,
    dispatched_at = NULL, cancel_requested_at = now(), version = j.version + 1
FROM locked AS l
WHERE j.id = l.id
RETURNING j.id, j.user_id, j.kind, j.lane AS queue, j.priority, j.state, j.version, j.trace_parent
"""


async def cancel_jobs(tx: Tx, ids: Sequence[UUID], states: Sequence[State]) -> list[Transition]:
    """Cancels those of `ids` that are queued, and asks those that run to stop; if they are in one of `states` still."""
    return [Transition(**row) for row in await tx.fetch(CANCEL_JOBS, ids, states)]


DELETE_JOBS = """
WITH locked AS (
    SELECT j.id FROM jobs.jobs AS j
    WHERE j.id = ANY($1::uuid[]) AND j.state = ANY($2::smallint[]) AND j.state >= 2
    ORDER BY j.id FOR UPDATE
)
DELETE FROM jobs.jobs AS j USING locked AS l
WHERE j.id = l.id
RETURNING j.id, j.user_id, j.kind, j.lane AS queue, j.priority, j.state, j.version, j.trace_parent
"""


async def delete_jobs(tx: Tx, ids: Sequence[UUID], states: Sequence[State]) -> list[Transition]:
    """Deletes those of `ids` that are over and in one of `states` still, with what is known of their runs and files."""
    return [Transition(**row) for row in await tx.fetch(DELETE_JOBS, ids, states)]


LIST_FILES_OF_JOBS = """
SELECT a.storage_key FROM jobs.artifacts AS a WHERE a.job_id = ANY($1::uuid[]) AND a.deleted_at IS NULL
"""


async def list_files_of_jobs(conn: ReadConn, ids: Sequence[UUID]) -> list[str]:
    """The storage keys of the files that these jobs have published."""
    return [row["storage_key"] for row in await conn.fetch(LIST_FILES_OF_JOBS, ids)]
