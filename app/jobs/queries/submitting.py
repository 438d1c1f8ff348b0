"""Jobs as their owners put them in and see them."""

from collections.abc import AsyncIterator, Sequence
from uuid import UUID

import orjson

from app.jobs.records import (
    COUNTED_AT_MOST,
    Artifact,
    InsertedJob,
    Job,
    JobOverview,
    State,
    StateFilter,
    Transition,
)
from app.kernel.database import CopyConn, ReadConn, Row, Tx
from app.kernel.ids import UserId
from app.kernel.queue import Allowance, NewJob

# The conflict arm changes nothing; it makes the statement return the living job that holds the key, and `xmax` is zero
# exactly for a row that was inserted just now. Whether a job is due is judged by the clock of the database, as the
# claim will do: an API host whose clock is ahead would hand out jobs that no worker may start yet.
#
# What a user has in a queue is counted once for all of the user's rows, through an index of unfinished jobs and never
# beyond the allowance: `n.owner_rank` is the row's number among those of `n.owner`, which may have so many more.
# Transactions do not see each other's rows, so that a user may exceed the allowance by as many as commit at a moment.
# A row whose unique key is taken adds nothing, and passes.
#
# Each array is a subquery of its own so that PostgreSQL does not know its length: by that it would plan the statement
# anew each time, which takes longer than running it.
INSERT_JOBS = """
INSERT INTO jobs.jobs AS j (id, user_id, kind, lane, priority, args, unique_key, max_attempts, timeout_seconds, run_at,
                            trace_parent, created_at, is_due, dispatched_at)
SELECT n.id, n.user_id, n.kind, n.lane, n.priority, n.args, n.unique_key, n.max_attempts, n.timeout_seconds,
       coalesce(n.run_at, now()), n.trace_parent, now(), coalesce(n.run_at <= now(), true),
       CASE WHEN n.dispatch AND coalesce(n.run_at <= now(), true) THEN now() END
FROM unnest((SELECT $1::uuid[]), (SELECT $2::uuid[]), (SELECT $3::text[]), (SELECT $4::text[]), (SELECT $5::smallint[]),
            (SELECT $6::jsonb[]), (SELECT $7::text[]), (SELECT $8::smallint[]), (SELECT $9::integer[]),
            (SELECT $10::timestamptz[]), (SELECT $11::text[]), (SELECT $12::boolean[]), (SELECT $13::integer[]),
            (SELECT $14::integer[]))
     AS n(id, user_id, kind, lane, priority, args, unique_key, max_attempts, timeout_seconds, run_at, trace_parent,
          dispatch, owner, owner_rank)
WHERE n.owner IS NULL
   OR n.owner_rank <= (
       ARRAY(
           SELECT (SELECT CASE WHEN min(b.run_at) FILTER (WHERE b.state = 0)
                                    <= now() - make_interval(secs => o.longest_wait)
                               THEN 0 ELSE o.most_jobs - count(*) END
                   FROM (SELECT l.state, l.run_at FROM jobs.jobs AS l
                         WHERE l.user_id = o.user_id AND l.lane = o.lane AND l.state < 2
                         LIMIT o.most_jobs) AS b)
           FROM unnest((SELECT $15::uuid[]), (SELECT $16::text[]), (SELECT $17::integer[]), (SELECT $18::float8[]))
                WITH ORDINALITY AS o(user_id, lane, most_jobs, longest_wait, number)
           ORDER BY o.number
       )
   )[n.owner]
   OR EXISTS (SELECT 1 FROM jobs.jobs AS k
              WHERE k.user_id = n.user_id AND k.kind = n.kind AND k.unique_key = n.unique_key AND k.state < 2)
ON CONFLICT (user_id, kind, unique_key) WHERE unique_key IS NOT NULL AND state < 2
DO UPDATE SET unique_key = excluded.unique_key
RETURNING j.id, (j.xmax = 0) AS created, j.dispatched_at IS NOT NULL AS dispatched, j.state, j.version, j.attempt,
          j.max_attempts, j.run_at <= now() AS is_due, j.progress, j.error, j.created_at, j.started_at, j.unique_key
"""


async def insert_jobs(tx: Tx, rows: Sequence[NewJob]) -> list[InsertedJob | None]:
    """Writes the rows; answers in their order, with None for those beyond their allowance."""
    allowances, owners, ranks = _allowances_of(rows)
    records = await tx.fetch(
        INSERT_JOBS,
        [row.id for row in rows],
        [row.user_id for row in rows],
        [row.kind for row in rows],
        [row.queue for row in rows],
        [row.priority for row in rows],
        [orjson.dumps(row.args).decode() for row in rows],
        [row.unique_key for row in rows],
        [row.max_attempts for row in rows],
        [row.timeout_seconds for row in rows],
        [row.run_at for row in rows],
        [row.trace_parent for row in rows],
        [row.dispatch for row in rows],
        owners,
        ranks,
        [user_id for user_id, _ in allowances],
        [queue for _, queue in allowances],
        [allowance.jobs for allowance in allowances.values()],
        [allowance.seconds for allowance in allowances.values()],
    )
    if len(records) == len(rows):
        return [_inserted(record) for record in records]
    # The records are those of `rows` in their order, with gaps.
    found = iter(records)
    record = next(found, None)
    answers: list[InsertedJob | None] = []
    for row in rows:
        if record is not None and _is_of(record, row):
            answers.append(_inserted(record))
            record = next(found, None)
        else:
            answers.append(None)
    return answers


def _allowances_of(
    rows: Sequence[NewJob],
) -> tuple[dict[tuple[UserId | None, str], Allowance], list[int | None], list[int | None]]:
    """The allowance of each owner, which is a user in a queue; the number of each row's owner, from 1; and the row's
    own among those of its owner. None for a row without an allowance.
    """
    allowances: dict[tuple[UserId | None, str], Allowance] = {}
    seen: dict[tuple[UserId | None, str], list[int]] = {}
    owners: list[int | None] = []
    ranks: list[int | None] = []
    for row in rows:
        if row.allowance is None:
            owners.append(None)
            ranks.append(None)
            continue
        owner = (row.user_id, row.queue)
        if owner not in seen:
            allowances[owner] = row.allowance
            seen[owner] = [len(allowances), 0]
        number_and_count = seen[owner]
        number_and_count[1] += 1
        owners.append(number_and_count[0])
        ranks.append(number_and_count[1])
    return allowances, owners, ranks


def _is_of(record: Row, row: NewJob) -> bool:
    return record["id"] == row.id or (not record["created"] and record["unique_key"] == row.unique_key)


def _inserted(record: Row) -> InsertedJob:
    return InsertedJob(*record[:-1])


# A job as its user sees it.
_SELECT_JOB = """
SELECT j.id, j.user_id, j.kind, j.state, j.version, j.attempt, j.max_attempts, j.run_at <= now() AS is_due, j.progress,
       j.result, j.error,
       (SELECT coalesce(jsonb_agg(jsonb_build_object('name', a.name, 'content_type', a.content_type, 'size', a.size,
                                                     'sha256', encode(a.sha256, 'hex'),
                                                     'expires_at', to_char(a.expires_at AT TIME ZONE 'UTC',
                                                                           'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))
                                  ORDER BY a.name), '[]')
        FROM jobs.artifacts AS a WHERE a.job_id = j.id AND a.deleted_at IS NULL) AS artifacts,
       j.created_at, j.started_at, j.finished_at
FROM jobs.jobs AS j
"""

GET_JOB = _SELECT_JOB + "WHERE j.id = $1 AND j.user_id = $2"


async def get_job(conn: ReadConn, job_id: UUID, user_id: UserId) -> Job | None:
    row = await conn.fetchrow(GET_JOB, job_id, user_id)
    return None if row is None else Job(**row)


EXISTS = """
SELECT j.id FROM jobs.jobs AS j WHERE j.id = $1 AND ($2::uuid IS NULL OR j.user_id = $2)
"""


async def exists(conn: ReadConn, job_id: UUID, user_id: UserId | None) -> bool:
    return await conn.fetchval(EXISTS, job_id, user_id) is not None


GET_STATE = """
SELECT j.lane AS queue, j.state FROM jobs.jobs AS j WHERE j.id = $1 AND ($2::uuid IS NULL OR j.user_id = $2)
"""


async def get_state(conn: ReadConn, job_id: UUID, user_id: UserId | None) -> tuple[str, State] | None:
    """The queue and the state of a job."""
    row = await conn.fetchrow(GET_STATE, job_id, user_id)
    return None if row is None else (row["queue"], State(row["state"]))


# What an index is to find is written as one range of that index. Postgres could not find "IS NULL OR" there with the
# plan that it keeps for all values; and an equality would let it walk the primary key, past the jobs of all users,
# where it believes that most of them are this one's.
LIST_JOBS = (
    _SELECT_JOB
    + """
WHERE (j.user_id, j.id) < ($1, coalesce($2::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff'))
  AND (j.user_id, j.id) >= ($1, coalesce($3::uuid, '00000000-0000-0000-0000-000000000000'))
  AND ($4::text IS NULL OR j.kind = $4)
ORDER BY j.user_id DESC, j.id DESC
LIMIT $5
"""
)

LIST_JOBS_IN_STATE = (
    _SELECT_JOB
    + """
WHERE (j.user_id, j.state, j.id) < ($1, $6, coalesce($2::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff'))
  AND (j.user_id, j.state, j.id) >= ($1, $6, coalesce($3::uuid, '00000000-0000-0000-0000-000000000000'))
  AND ($4::text IS NULL OR j.kind = $4)
  AND ($7::boolean IS NULL OR (j.attempt > 0) = $7)
  AND ($8::boolean IS NULL OR (j.run_at > now()) = $8)
ORDER BY j.user_id DESC, j.state DESC, j.id DESC
LIMIT $5
"""
)


async def list_jobs(
    conn: ReadConn,
    user_id: UserId,
    *,
    before: UUID | None,
    kind: str | None,
    state: StateFilter | None,
    limit: int,
    scan_end: UUID | None = None,
) -> list[Job]:
    """A user's jobs, newest first, down to `scan_end`."""
    if state is None:
        rows = await conn.fetch(LIST_JOBS, user_id, before, scan_end, kind, limit)
    else:
        rows = await conn.fetch(
            LIST_JOBS_IN_STATE,
            user_id,
            before,
            scan_end,
            kind,
            limit,
            state.state,
            state.attempted,
            state.future,
        )
    return [Job(**row) for row in rows]


# Results are up to hundreds of KiB long.
_PREFETCH = 32
_ALL = 2**62


async def iterate_jobs(conn: CopyConn, user_id: UserId) -> AsyncIterator[Job]:
    """All jobs of a user, newest first, a few in memory at a time."""
    async for row in conn.cursor(LIST_JOBS, user_id, None, None, None, _ALL, prefetch=_PREFETCH):
        yield Job(**row)


GET_SCAN_END = """
SELECT j.id FROM jobs.jobs AS j
WHERE (j.user_id, j.id) < ($1, coalesce($2::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff'))
  AND (j.user_id, j.id) >= ($1, '00000000-0000-0000-0000-000000000000')
ORDER BY j.user_id DESC, j.id DESC OFFSET $3 LIMIT 1
"""

GET_SCAN_END_IN_STATE = """
SELECT j.id FROM jobs.jobs AS j
WHERE (j.user_id, j.state, j.id) < ($1, $4, coalesce($2::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff'))
  AND (j.user_id, j.state, j.id) >= ($1, $4, '00000000-0000-0000-0000-000000000000')
ORDER BY j.user_id DESC, j.state DESC, j.id DESC OFFSET $3 LIMIT 1
"""


async def get_scan_end(
    conn: ReadConn, user_id: UserId, *, before: UUID | None, state: StateFilter | None, count: int
) -> UUID | None:
    """The last of the next `count` jobs of a user, or of those in this stored state; None: there are fewer."""
    if state is None:
        found: UUID | None = await conn.fetchval(GET_SCAN_END, user_id, before, count - 1)
    else:
        found = await conn.fetchval(GET_SCAN_END_IN_STATE, user_id, before, count - 1, state.state)
    return found


# One walk counts the jobs of nearly every user. Of one with more jobs than `$2` it has not seen all, so each state is
# counted by itself, up to `$2`.
LIST_OVERVIEWS = """
SELECT u.user_id, coalesce(many.queued, few.queued) AS queued, coalesce(many.running, few.running) AS running,
       coalesce(many.succeeded, few.succeeded) AS succeeded, coalesce(many.failed, few.failed) AS failed, newest.recent
FROM unnest($1::uuid[]) AS u (user_id)
CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE state = 0) AS queued,
           count(*) FILTER (WHERE state = 1) AS running,
           count(*) FILTER (WHERE state = 2) AS succeeded,
           count(*) FILTER (WHERE state = 3) AS failed,
           count(*) AS seen
    FROM (SELECT state FROM jobs.jobs
          WHERE (user_id, state, id) >= (u.user_id, 0, '00000000-0000-0000-0000-000000000000')
            AND (user_id, state, id) <= (u.user_id, 4, 'ffffffff-ffff-ffff-ffff-ffffffffffff')
          ORDER BY user_id, state, id LIMIT $2 + 1) AS first
) AS few
CROSS JOIN LATERAL (
    SELECT max(c.count) FILTER (WHERE s.state = 0) AS queued,
           max(c.count) FILTER (WHERE s.state = 1) AS running,
           max(c.count) FILTER (WHERE s.state = 2) AS succeeded,
           max(c.count) FILTER (WHERE s.state = 3) AS failed
    FROM unnest('{0,1,2,3}'::smallint[]) AS s (state)
    CROSS JOIN LATERAL (
        SELECT count(*) FROM (
            SELECT FROM jobs.jobs
            WHERE (user_id, state, id) >= (u.user_id, s.state, '00000000-0000-0000-0000-000000000000')
              AND (user_id, state, id) <= (u.user_id, s.state, 'ffffffff-ffff-ffff-ffff-ffffffffffff')
            ORDER BY user_id, state, id LIMIT $2
        ) AS counted
    ) AS c
    WHERE few.seen > $2
) AS many
CROSS JOIN LATERAL (
    SELECT coalesce(jsonb_agg(jsonb_build_object(
               'id', r.id, 'kind', r.kind,
               'state', CASE WHEN r.state = 0 AND r.attempt > 0 THEN 'retrying'
                             WHEN r.state = 0 AND r.run_at > now() THEN 'scheduled'
                             ELSE (ARRAY['queued', 'running', 'succeeded', 'failed', 'cancelled'])[r.state + 1] END,
               'created_at', to_char(r.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
               'finished_at', to_char(r.finished_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))
               ORDER BY r.id DESC), '[]') AS recent
    FROM (SELECT id, kind, state, attempt, run_at, created_at, finished_at FROM jobs.jobs
          WHERE (user_id, id) >= (u.user_id, '00000000-0000-0000-0000-000000000000')
            AND (user_id, id) <= (u.user_id, 'ffffffff-ffff-ffff-ffff-ffffffffffff')
          ORDER BY user_id DESC, id DESC LIMIT 5) AS r
) AS newest
"""


async def list_overviews(conn: ReadConn, user_ids: Sequence[UserId]) -> dict[UserId, JobOverview]:
    """Counts by state, up to `COUNTED_AT_MOST`, and the five newest jobs of each of these users, in one statement."""
    rows = await conn.fetch(LIST_OVERVIEWS, user_ids, COUNTED_AT_MOST)
    return {user_id: JobOverview(*row) for user_id, *row in rows}


GET_ARTIFACT = """
SELECT j.kind, a.name, a.content_type, a.size, a.sha256, a.storage_key,
       a.deleted_at IS NOT NULL OR a.expires_at <= now() AS is_expired
FROM jobs.artifacts AS a JOIN jobs.jobs AS j ON j.id = a.job_id
WHERE a.job_id = $1 AND a.name = $3 AND j.user_id = $2
"""


async def get_artifact(conn: ReadConn, job_id: UUID, user_id: UserId, name: str) -> Artifact | None:
    row = await conn.fetchrow(GET_ARTIFACT, job_id, user_id, name)
    return None if row is None else Artifact(**row)


REQUEST_CANCEL = """
UPDATE jobs.jobs AS j
SET state = CASE WHEN j.state = 0 THEN 4 ELSE j.state END,
    finished_at = CASE WHEN j.state = 0 THEN now() END,
    dispatched_at = NULL, cancel_requested_at = coalesce(j.cancel_requested_at, now()), version = j.version + 1
WHERE j.id = $1 AND ($2::uuid IS NULL OR j.user_id = $2) AND j.state < 2
RETURNING j.id, j.user_id, j.kind, j.lane AS queue, j.priority, j.state, j.version, j.trace_parent
"""


async def request_cancel(tx: Tx, job_id: UUID, user_id: UserId | None) -> Transition | None:
    """Cancels a queued job at once, and asks a running one to stop. None: it is over, or not this user's."""
    row = await tx.fetchrow(REQUEST_CANCEL, job_id, user_id)
    return None if row is None else Transition(**row)


REQUEUE_JOB = """
UPDATE jobs.jobs AS j
SET state = 0, attempt = 0, rescues = 0, run_at = now(), is_due = true, postponed_since = NULL,
    finished_at = NULL, error = NULL, result = NULL, progress = NULL, cancel_requested_at = NULL,
    dispatched_at = now(), version = j.version + 1
WHERE j.id = $1 AND ($2::uuid IS NULL OR j.user_id = $2) AND j.state IN (3, 4)
  AND ($3::integer IS NULL
       OR (SELECT count(*) FROM (SELECT 1 FROM jobs.jobs AS l
                                 WHERE l.user_id = j.user_id AND l.lane = j.lane AND l.state < 2
                                 LIMIT $3) AS counted) < $3)
RETURNING j.id, j.user_id, j.kind, j.lane AS queue, j.priority, j.state, j.version, j.trace_parent
"""


async def requeue_job(tx: Tx, job_id: UUID, user_id: UserId | None, most_jobs: int | None) -> Transition | None:
    """Starts a failed or cancelled job over, unless its user has `most_jobs` unfinished ones in its queue.

    Raises ConstraintViolated when a living job holds its unique key.
    """
    row = await tx.fetchrow(REQUEUE_JOB, job_id, user_id, most_jobs)
    return None if row is None else Transition(**row)
