"""Every statement on the `jobs` schema that concerns jobs themselves."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

import orjson

from app.jobs.records import (
    CAP_PAUSE,
    CAPPED_LANES,
    AdminJob,
    Artifact,
    Beat,
    ClaimedJob,
    DispatchedJob,
    DueSchedule,
    InsertedJob,
    Job,
    LaneDepth,
    NewArtifact,
    Outcome,
    Overview,
    ScheduleRow,
    StateFilter,
    Transition,
    WaitingJob,
)
from app.kernel.database import DirectConn, ReadConn, Tx
from app.kernel.ids import UserId
from app.kernel.queue import NewJob

# The conflict arm changes nothing; it makes the statement return the living job that holds the key, and `xmax` is zero
# exactly for a row that was inserted just now.
INSERT_JOBS = """
INSERT INTO jobs.jobs AS j (id, user_id, kind, lane, priority, args, unique_key, max_attempts, timeout_seconds, run_at,
                            trace_parent, created_at, dispatched_at)
SELECT n.id, n.user_id, n.kind, n.lane, n.priority, n.args, n.unique_key, n.max_attempts, n.timeout_seconds,
       coalesce(n.run_at, n.created_at), n.trace_parent, n.created_at, CASE WHEN n.dispatch THEN n.created_at END
FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::smallint[], $6::jsonb[], $7::text[], $8::smallint[],
            $9::integer[], $10::timestamptz[], $11::text[], $12::timestamptz[], $13::boolean[])
     AS n(id, user_id, kind, lane, priority, args, unique_key, max_attempts, timeout_seconds, run_at, trace_parent,
          created_at, dispatch)
ON CONFLICT (user_id, kind, unique_key) WHERE unique_key IS NOT NULL AND state < 2
DO UPDATE SET unique_key = excluded.unique_key
RETURNING j.id, (j.xmax = 0) AS created, j.state, j.version, j.attempt, j.max_attempts, j.run_at, j.progress, j.error,
          j.created_at, j.started_at
"""


async def insert_jobs(tx: Tx, rows: Sequence[NewJob]) -> list[InsertedJob]:
    """Writes the rows; answers in their order."""
    records = await tx.fetch(
        INSERT_JOBS,
        [row.id for row in rows],
        [row.user_id for row in rows],
        [row.kind for row in rows],
        [row.lane for row in rows],
        [row.priority for row in rows],
        [orjson.dumps(row.args).decode() for row in rows],
        [row.unique_key for row in rows],
        [row.max_attempts for row in rows],
        [row.timeout_seconds for row in rows],
        [row.run_at for row in rows],
        [row.trace_parent for row in rows],
        [row.created_at for row in rows],
        [row.dispatch for row in rows],
    )
    return [InsertedJob(**record) for record in records]


GET_JOB = """
SELECT j.id, j.user_id, j.kind, j.state, j.version, j.attempt, j.max_attempts, j.run_at, j.progress, j.result, j.error,
       (SELECT coalesce(jsonb_agg(jsonb_build_object('name', a.name, 'content_type', a.content_type, 'size', a.size,
                                                     'sha256', encode(a.sha256, 'hex'),
                                                     'expires_at', to_char(a.expires_at AT TIME ZONE 'UTC',
                                                                           'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))
                                  ORDER BY a.name), '[]')
        FROM jobs.artifacts AS a WHERE a.job_id = j.id AND a.deleted_at IS NULL) AS artifacts,
       j.created_at, j.started_at, j.finished_at
FROM jobs.jobs AS j
WHERE j.id = $1 AND j.user_id = $2
"""


async def get_job(conn: ReadConn, job_id: UUID, user_id: UserId) -> Job | None:
    row = await conn.fetchrow(GET_JOB, job_id, user_id)
    return None if row is None else Job(**row)


EXISTS = """
SELECT j.id FROM jobs.jobs AS j WHERE j.id = $1 AND ($2::uuid IS NULL OR j.user_id = $2)
"""


async def exists(conn: ReadConn, job_id: UUID, user_id: UserId | None) -> bool:
    return await conn.fetchval(EXISTS, job_id, user_id) is not None


LIST_JOBS = """
SELECT j.id, j.user_id, j.kind, j.state, j.version, j.attempt, j.max_attempts, j.run_at, j.progress, j.result, j.error,
       (SELECT coalesce(jsonb_agg(jsonb_build_object('name', a.name, 'content_type', a.content_type, 'size', a.size,
                                                     'sha256', encode(a.sha256, 'hex'),
                                                     'expires_at', to_char(a.expires_at AT TIME ZONE 'UTC',
                                                                           'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))
                                  ORDER BY a.name), '[]')
        FROM jobs.artifacts AS a WHERE a.job_id = j.id AND a.deleted_at IS NULL) AS artifacts,
       j.created_at, j.started_at, j.finished_at
FROM jobs.jobs AS j
WHERE j.user_id = $1
  AND ($2::uuid IS NULL OR j.id < $2)
  AND ($3::text IS NULL OR j.kind = $3)
  AND ($4::smallint IS NULL OR j.state = $4)
  AND ($5::boolean IS NULL OR (j.attempt > 0) = $5)
  AND ($6::boolean IS NULL OR (j.run_at > $7) = $6)
ORDER BY j.id DESC
LIMIT $8
"""


async def list_jobs(
    conn: ReadConn,
    user_id: UserId,
    *,
    before: UUID | None,
    kind: str | None,
    state: StateFilter | None,
    now: datetime,
    limit: int,
) -> list[Job]:
    """A user's jobs, newest first."""
    rows = await conn.fetch(
        LIST_JOBS,
        user_id,
        before,
        kind,
        None if state is None else state.state,
        None if state is None else state.attempted,
        None if state is None else state.future,
        now,
        limit,
    )
    return [Job(**row) for row in rows]


READ_OVERVIEW = """
SELECT count(*) FILTER (WHERE state = 0) AS queued,
       count(*) FILTER (WHERE state = 1) AS running,
       count(*) FILTER (WHERE state = 2) AS succeeded,
       count(*) FILTER (WHERE state = 3) AS failed,
       (SELECT coalesce(jsonb_agg(jsonb_build_object(
                   'id', r.id, 'kind', r.kind,
                   'state', CASE WHEN r.state = 0 AND r.attempt > 0 THEN 'retrying'
                                 WHEN r.state = 0 AND r.run_at > now() THEN 'scheduled'
                                 ELSE (ARRAY['queued', 'running', 'succeeded', 'failed', 'cancelled'])[r.state + 1] END,
                   'created_at', to_char(r.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
                   'finished_at', to_char(r.finished_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))
                   ORDER BY r.id DESC), '[]')
        FROM (SELECT id, kind, state, attempt, run_at, created_at, finished_at FROM jobs.jobs
              WHERE user_id = $1 ORDER BY id DESC LIMIT 5) AS r) AS recent
FROM jobs.jobs
WHERE user_id = $1
"""


async def read_overview(conn: ReadConn, user_id: UserId) -> Overview:
    """Counts by state and the five newest jobs, in one statement."""
    row = await conn.fetchrow(READ_OVERVIEW, user_id)
    if row is None:
        raise LookupError("an aggregate always has a row")
    return Overview(**row)


GET_ARTIFACT = """
SELECT a.name, a.content_type, a.size, a.sha256, a.storage_key, a.created_at, a.expires_at, a.deleted_at
FROM jobs.artifacts AS a JOIN jobs.jobs AS j ON j.id = a.job_id
WHERE a.job_id = $1 AND a.name = $3 AND j.user_id = $2
"""


async def get_artifact(conn: ReadConn, job_id: UUID, user_id: UserId, name: str) -> Artifact | None:
    row = await conn.fetchrow(GET_ARTIFACT, job_id, user_id, name)
    return None if row is None else Artifact(**row)


# Rows that another worker is claiming are skipped, so that two overlapping batches can never wait for each other. What
# goes beyond a user's cap comes back a moment later; that two workers may exceed it together by a few does no harm.
CLAIM_JOBS = """
WITH locked AS (
    SELECT id, user_id, lane, run_at FROM jobs.jobs
    WHERE id = ANY($1::uuid[]) AND state = 0 AND run_at <= now()
    FOR UPDATE SKIP LOCKED
), ranked AS (
    SELECT l.id, l.user_id IS NULL OR l.lane <> ALL($5::text[])
           OR row_number() OVER (PARTITION BY l.user_id, l.lane ORDER BY l.id)
              + (SELECT count(*) FROM jobs.jobs AS r WHERE r.user_id = l.user_id AND r.lane = l.lane AND r.state = 1)
              <= $6::integer AS allowed
    FROM locked AS l
), put_off AS (
    UPDATE jobs.jobs AS j
    SET run_at = now() + make_interval(secs => $7::float8 + random() * ($8::float8 - $7::float8)), dispatched_at = NULL
    FROM ranked AS r WHERE j.id = r.id AND NOT r.allowed
)
UPDATE jobs.jobs AS j
SET state = 1, attempt = j.attempt + 1, run_token = $2, worker_id = $3, version = j.version + 1,
    started_at = now(), lease_until = now() + make_interval(secs => $4), dispatched_at = NULL, progress = NULL
FROM ranked AS r
WHERE j.id = r.id AND r.allowed
RETURNING j.id, j.user_id, j.kind, j.lane, j.args, j.attempt, j.max_attempts, j.rescues, j.timeout_seconds, j.run_token,
          j.created_at, j.run_at AS ready_at, j.trace_parent
"""


async def claim_jobs(
    tx: Tx, ids: Sequence[UUID], *, run_token: UUID, worker_id: str, lease_seconds: float, user_cap: int
) -> list[ClaimedJob]:
    """Takes those of `ids` that are due and free, as far as their user's cap allows."""
    rows = await tx.fetch(CLAIM_JOBS, ids, run_token, worker_id, lease_seconds, CAPPED_LANES, user_cap, *CAP_PAUSE)
    return [ClaimedJob(**row) for row in rows]


CLAIM_NEXT_JOBS = """
WITH wanted AS (
    SELECT lane, count FROM unnest($1::text[], $2::integer[]) AS w(lane, count)
), picked AS (
    SELECT p.id FROM wanted CROSS JOIN LATERAL (
        SELECT id FROM jobs.jobs
        WHERE lane = wanted.lane AND state = 0 AND run_at <= now()
        ORDER BY priority, run_at
        LIMIT wanted.count
        FOR UPDATE SKIP LOCKED
    ) AS p
    LIMIT $3
)
UPDATE jobs.jobs AS j
SET state = 1, attempt = j.attempt + 1, run_token = $4, worker_id = $5, version = j.version + 1,
    started_at = now(), lease_until = now() + make_interval(secs => $6), dispatched_at = NULL, progress = NULL
FROM picked
WHERE j.id = picked.id
RETURNING j.id, j.user_id, j.kind, j.lane, j.args, j.attempt, j.max_attempts, j.rescues, j.timeout_seconds, j.run_token,
          j.created_at, j.run_at AS ready_at, j.trace_parent
"""


async def claim_next_jobs(
    tx: Tx,
    wants: Sequence[tuple[str, int]],
    total: int,
    *,
    run_token: UUID,
    worker_id: str,
    lease_seconds: float,
) -> list[ClaimedJob]:
    """Takes up to `total` due jobs of the wanted lanes without any help of Redis."""
    lanes = [lane for lane, _ in wants]
    counts = [count for _, count in wants]
    rows = await tx.fetch(CLAIM_NEXT_JOBS, lanes, counts, total, run_token, worker_id, lease_seconds)
    return [ClaimedJob(**row) for row in rows]


# A cancel that was asked for while the job ran wins over another attempt, but not over a result.
FINISH_JOBS = """
WITH outcome AS (
    SELECT id, run_token, state, result, error, delay, give_back, rescued
    FROM unnest($1::uuid[], $2::uuid[], $3::smallint[], $4::jsonb[], $5::jsonb[], $6::float8[], $7::boolean[],
                $8::boolean[])
         AS o(id, run_token, state, result, error, delay, give_back, rescued)
), locked AS (
    SELECT j.id, CASE WHEN o.state = 0 AND j.cancel_requested_at IS NOT NULL THEN 4::smallint ELSE o.state END AS state,
           o.result, o.error, o.delay, o.give_back, o.rescued
    FROM jobs.jobs AS j JOIN outcome AS o ON o.id = j.id AND o.run_token = j.run_token
    WHERE j.state = 1
    ORDER BY j.id
    FOR UPDATE OF j
), finished AS (
    UPDATE jobs.jobs AS j
    SET state = l.state, result = l.result, error = coalesce(l.error, j.error), version = j.version + 1,
        attempt = j.attempt - l.give_back::integer, rescues = j.rescues + l.rescued::integer,
        run_at = CASE WHEN l.state = 0 THEN now() + make_interval(secs => l.delay) ELSE j.run_at END,
        finished_at = CASE WHEN l.state >= 2 THEN now() END,
        dispatched_at = CASE WHEN l.state = 0 AND l.delay = 0 THEN now() END,
        run_token = NULL, worker_id = NULL, lease_until = NULL
    FROM locked AS l
    WHERE j.id = l.id
    RETURNING j.id, j.user_id, j.kind, j.lane, j.priority, j.state
), published AS (
    INSERT INTO jobs.artifacts (job_id, name, user_id, content_type, size, sha256, storage_key, expires_at)
    SELECT a.job_id, a.name, f.user_id, a.content_type, a.size, a.sha256, a.storage_key, a.expires_at
    FROM unnest($9::uuid[], $10::text[], $11::text[], $12::bigint[], $13::bytea[], $14::text[], $15::timestamptz[])
         AS a(job_id, name, content_type, size, sha256, storage_key, expires_at)
    JOIN finished AS f ON f.id = a.job_id AND f.state = 2
    ON CONFLICT (job_id, name) DO UPDATE
    SET content_type = excluded.content_type, size = excluded.size, sha256 = excluded.sha256,
        storage_key = excluded.storage_key, created_at = now(), expires_at = excluded.expires_at, deleted_at = NULL
)
SELECT id, user_id, kind, lane, priority, state FROM finished
"""


async def finish_jobs(tx: Tx, outcomes: Sequence[Outcome], artifacts: Sequence[NewArtifact] = ()) -> list[Transition]:
    """Ends runs and publishes their files. A run that no longer owns its job is missing from the answer."""
    rows = await tx.fetch(
        FINISH_JOBS,
        [outcome.job_id for outcome in outcomes],
        [outcome.run_token for outcome in outcomes],
        [outcome.state for outcome in outcomes],
        [outcome.result for outcome in outcomes],
        [outcome.error for outcome in outcomes],
        [outcome.delay for outcome in outcomes],
        [outcome.give_back for outcome in outcomes],
        [outcome.rescued for outcome in outcomes],
        [artifact.job_id for artifact in artifacts],
        [artifact.name for artifact in artifacts],
        [artifact.content_type for artifact in artifacts],
        [artifact.size for artifact in artifacts],
        [artifact.sha256 for artifact in artifacts],
        [artifact.storage_key for artifact in artifacts],
        [artifact.expires_at for artifact in artifacts],
    )
    return [Transition(**row) for row in rows]


LOCK_RUN = """
SELECT j.id FROM jobs.jobs AS j WHERE j.id = $1 AND j.run_token = $2 AND j.state = 1 FOR UPDATE
"""


async def lock_run(tx: Tx, job_id: UUID, run_token: UUID) -> bool:
    """Whether this run still owns its job; if so, nobody can take it before `tx` ends."""
    return await tx.fetchval(LOCK_RUN, job_id, run_token) is not None


BEAT = """
WITH held AS (
    SELECT h.id, h.run_token, h.progress
    FROM unnest($1::uuid[], $2::uuid[], $3::jsonb[]) AS h(id, run_token, progress)
), locked AS (
    SELECT j.id, h.progress FROM jobs.jobs AS j JOIN held AS h ON h.id = j.id AND h.run_token = j.run_token
    WHERE j.state = 1 ORDER BY j.id FOR UPDATE OF j
)
UPDATE jobs.jobs AS j
SET lease_until = now() + make_interval(secs => $4), progress = coalesce(l.progress, j.progress),
    version = j.version + (l.progress IS NOT NULL)::integer
FROM locked AS l
WHERE j.id = l.id
RETURNING j.id, (j.cancel_requested_at IS NOT NULL) AS cancel_requested
"""


async def beat(
    tx: Tx, runs: Sequence[tuple[UUID, UUID]], progress: Sequence[str | None], *, lease_seconds: float
) -> list[Beat]:
    """Prolongs the leases of `(job id, run token)` and writes new progress. Lost runs are missing from the answer."""
    rows = await tx.fetch(BEAT, [job_id for job_id, _ in runs], [token for _, token in runs], progress, lease_seconds)
    return [Beat(**row) for row in rows]


RESCUE_JOBS = """
WITH expired AS (
    SELECT id FROM jobs.jobs WHERE state = 1 AND lease_until < now()
    ORDER BY lease_until LIMIT $2 FOR UPDATE SKIP LOCKED
)
UPDATE jobs.jobs AS j
SET rescues = j.rescues + 1, version = j.version + 1,
    state = CASE WHEN j.cancel_requested_at IS NOT NULL THEN 4
                 WHEN j.rescues + 1 >= $1 OR j.attempt >= j.max_attempts THEN 3 ELSE 0 END,
    error = jsonb_build_object('code', 'worker_lost', 'message', 'The worker that ran this job disappeared.'),
    finished_at = CASE WHEN j.cancel_requested_at IS NOT NULL OR j.rescues + 1 >= $1 OR j.attempt >= j.max_attempts
                       THEN now() END,
    run_at = now(), dispatched_at = now(), run_token = NULL, worker_id = NULL, lease_until = NULL
FROM expired
WHERE j.id = expired.id
RETURNING j.id, j.user_id, j.kind, j.lane, j.priority, j.state
"""


async def rescue_jobs(tx: Tx, *, max_rescues: int, limit: int) -> list[Transition]:
    """Takes jobs away from workers that let their lease end; a job that killed too many of them fails."""
    return [Transition(**row) for row in await tx.fetch(RESCUE_JOBS, max_rescues, limit)]


REQUEST_CANCEL = """
UPDATE jobs.jobs AS j
SET state = CASE WHEN j.state = 0 THEN 4 ELSE j.state END,
    finished_at = CASE WHEN j.state = 0 THEN now() END,
    dispatched_at = NULL, cancel_requested_at = coalesce(j.cancel_requested_at, now()), version = j.version + 1
WHERE j.id = $1 AND ($2::uuid IS NULL OR j.user_id = $2) AND j.state < 2
RETURNING j.id, j.user_id, j.kind, j.lane, j.priority, j.state
"""


async def request_cancel(tx: Tx, job_id: UUID, user_id: UserId | None) -> Transition | None:
    """Cancels a queued job at once, and asks a running one to stop. None: it is over, or not this user's."""
    row = await tx.fetchrow(REQUEST_CANCEL, job_id, user_id)
    return None if row is None else Transition(**row)


REQUEUE_JOB = """
UPDATE jobs.jobs AS j
SET state = 0, attempt = 0, rescues = 0, run_at = now(), finished_at = NULL, error = NULL, result = NULL,
    progress = NULL, cancel_requested_at = NULL, dispatched_at = now(), version = j.version + 1
WHERE j.id = $1 AND ($2::uuid IS NULL OR j.user_id = $2) AND j.state IN (3, 4)
RETURNING j.id, j.user_id, j.kind, j.lane, j.priority, j.state
"""


async def requeue_job(tx: Tx, job_id: UUID, user_id: UserId | None) -> Transition | None:
    """Starts a failed or cancelled job over. Raises ConstraintViolated when a living job holds its unique key."""
    row = await tx.fetchrow(REQUEUE_JOB, job_id, user_id)
    return None if row is None else Transition(**row)


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
WHERE j.lane = $1 AND j.state = 0 AND j.dispatched_at > $2 AND j.dispatched_at < $3
ORDER BY j.dispatched_at
LIMIT $4
"""


async def list_dispatched_jobs(
    conn: ReadConn, lane: str, *, after: datetime, before: datetime, limit: int
) -> list[DispatchedJob]:
    """Queued jobs that went to Redis between two moments."""
    return [DispatchedJob(**row) for row in await conn.fetch(LIST_DISPATCHED_JOBS, lane, after, before, limit)]


UNDISPATCH_JOBS = """
UPDATE jobs.jobs SET dispatched_at = NULL WHERE id = ANY($1::uuid[]) AND state = 0
"""


async def undispatch_jobs(tx: Tx, ids: Sequence[UUID]) -> None:
    """Hands ids back to the relay because Redis does not have them."""
    await tx.execute(UNDISPATCH_JOBS, ids)


UNDISPATCH_ALL = """
UPDATE jobs.jobs SET dispatched_at = NULL WHERE state = 0 AND dispatched_at IS NOT NULL
"""


async def undispatch_all(tx: Tx) -> int:
    """Hands every queued job back to the relay; answers how many there were."""
    return int((await tx.execute(UNDISPATCH_ALL)).removeprefix("UPDATE "))


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


LIST_PAUSED_LANES = """
SELECT l.lane FROM jobs.lanes AS l WHERE l.paused_at IS NOT NULL
"""


async def list_paused_lanes(conn: ReadConn) -> list[str]:
    return [row["lane"] for row in await conn.fetch(LIST_PAUSED_LANES)]


SET_LANE_PAUSED = """
INSERT INTO jobs.lanes AS l (lane, paused_at) VALUES ($1, CASE WHEN $2::boolean THEN now() END)
ON CONFLICT (lane) DO UPDATE SET paused_at = CASE WHEN $2::boolean THEN coalesce(l.paused_at, now()) END
"""


async def set_lane_paused(tx: Tx, lane: str, *, paused: bool) -> None:
    await tx.execute(SET_LANE_PAUSED, lane, paused)


LIST_ALL_JOBS = """
SELECT j.id, j.user_id, j.kind, j.lane, j.state, j.attempt, j.max_attempts, j.rescues, j.run_at, j.worker_id, j.error,
       j.created_at, j.started_at, j.finished_at
FROM jobs.jobs AS j
WHERE ($1::uuid IS NULL OR j.id < $1)
  AND ($2::smallint IS NULL OR j.state = $2)
  AND ($3::boolean IS NULL OR (j.attempt > 0) = $3)
  AND ($4::boolean IS NULL OR (j.run_at > $5) = $4)
ORDER BY j.id DESC
LIMIT $6
"""


async def list_all_jobs(
    conn: ReadConn, *, before: UUID | None, state: StateFilter | None, now: datetime, limit: int
) -> list[AdminJob]:
    """Everybody's jobs, newest first."""
    rows = await conn.fetch(
        LIST_ALL_JOBS,
        before,
        None if state is None else state.state,
        None if state is None else state.attempted,
        None if state is None else state.future,
        now,
        limit,
    )
    return [AdminJob(**row) for row in rows]


GET_ANY_JOB = """
SELECT j.id, j.user_id, j.kind, j.lane, j.state, j.attempt, j.max_attempts, j.rescues, j.run_at, j.worker_id, j.error,
       j.created_at, j.started_at, j.finished_at
FROM jobs.jobs AS j
WHERE j.id = $1
"""


async def get_any_job(conn: ReadConn, job_id: UUID) -> AdminJob | None:
    row = await conn.fetchrow(GET_ANY_JOB, job_id)
    return None if row is None else AdminJob(**row)


REQUEUE_FAILED_JOBS = """
WITH failed AS (
    SELECT id FROM jobs.jobs
    WHERE state = 3 AND unique_key IS NULL AND ($1::text IS NULL OR kind = $1) AND finished_at >= $2
    ORDER BY finished_at LIMIT $3 FOR UPDATE SKIP LOCKED
)
UPDATE jobs.jobs AS j
SET state = 0, attempt = 0, rescues = 0, run_at = now(), finished_at = NULL, error = NULL, result = NULL,
    progress = NULL, cancel_requested_at = NULL, dispatched_at = now(), version = j.version + 1
FROM failed
WHERE j.id = failed.id
RETURNING j.id, j.user_id, j.kind, j.lane, j.priority, j.state
"""


async def requeue_failed_jobs(tx: Tx, *, kind: str | None, since: datetime, limit: int) -> list[Transition]:
    """Starts failed jobs over, those that failed first first. One with a unique key is left to be retried singly."""
    return [Transition(**row) for row in await tx.fetch(REQUEUE_FAILED_JOBS, kind, since, limit)]


STORE_SCHEDULES = """
INSERT INTO jobs.schedules AS s (name, kind, args, cron, timezone, catch_up, next_run_at)
SELECT n.name, n.kind, n.args, n.cron, n.timezone, n.catch_up, n.next_run_at
FROM unnest($1::text[], $2::text[], $3::jsonb[], $4::text[], $5::text[], $6::text[], $7::timestamptz[])
     AS n(name, kind, args, cron, timezone, catch_up, next_run_at)
ON CONFLICT (name) DO UPDATE
SET kind = excluded.kind, args = excluded.args, cron = excluded.cron, timezone = excluded.timezone,
    catch_up = excluded.catch_up,
    next_run_at = CASE WHEN (s.cron, s.timezone) = (excluded.cron, excluded.timezone) THEN s.next_run_at
                       ELSE excluded.next_run_at END
"""


async def store_schedules(tx: Tx, rows: Sequence[ScheduleRow]) -> None:
    """Adds or changes schedules; one whose times stay the same keeps its next one."""
    await tx.execute(
        STORE_SCHEDULES,
        [row.name for row in rows],
        [row.kind for row in rows],
        [orjson.dumps(row.args).decode() for row in rows],
        [row.cron for row in rows],
        [row.timezone for row in rows],
        [row.catch_up for row in rows],
        [row.next_run_at for row in rows],
    )


DELETE_OTHER_SCHEDULES = """
DELETE FROM jobs.schedules WHERE name <> ALL($1::text[])
"""


async def delete_other_schedules(tx: Tx, names: Sequence[str]) -> None:
    await tx.execute(DELETE_OTHER_SCHEDULES, names)


LOCK_DUE_SCHEDULES = """
SELECT s.name, s.kind, s.args, s.cron, s.timezone, s.catch_up, s.next_run_at FROM jobs.schedules AS s
WHERE s.next_run_at <= $1
ORDER BY s.name
FOR UPDATE SKIP LOCKED
"""


async def lock_due_schedules(tx: Tx, now: datetime) -> list[DueSchedule]:
    """Schedules that nobody else steps on at this moment."""
    return [DueSchedule(**row) for row in await tx.fetch(LOCK_DUE_SCHEDULES, now)]


SET_NEXT_RUN = """
UPDATE jobs.schedules SET last_run_at = next_run_at, next_run_at = $2 WHERE name = $1
"""


async def set_next_run(tx: Tx, name: str, next_run_at: datetime) -> None:
    await tx.execute(SET_NEXT_RUN, name, next_run_at)


LIST_EXPIRED_ARTIFACTS = """
SELECT a.storage_key FROM jobs.artifacts AS a
WHERE a.deleted_at IS NULL AND a.expires_at <= now()
ORDER BY a.expires_at LIMIT $1
"""


async def list_expired_artifacts(conn: ReadConn, limit: int) -> list[str]:
    """Storage keys of files whose time is over."""
    return [row["storage_key"] for row in await conn.fetch(LIST_EXPIRED_ARTIFACTS, limit)]


MARK_ARTIFACTS_DELETED = """
UPDATE jobs.artifacts SET deleted_at = now() WHERE storage_key = ANY($1::text[]) AND expires_at <= now()
"""


async def mark_artifacts_deleted(tx: Tx, keys: Sequence[str]) -> None:
    await tx.execute(MARK_ARTIFACTS_DELETED, keys)


DELETE_OLD_JOBS = """
DELETE FROM jobs.jobs WHERE id IN (
    SELECT j.id FROM jobs.jobs AS j
    WHERE j.state >= 2 AND j.finished_at < now() - make_interval(days => $1)
      AND NOT EXISTS (SELECT 1 FROM jobs.artifacts AS a WHERE a.job_id = j.id AND a.deleted_at IS NULL)
    ORDER BY j.finished_at LIMIT $2
    FOR UPDATE SKIP LOCKED
)
"""


async def delete_old_jobs(tx: Tx, days: int, limit: int) -> int:
    """Deletes up to `limit` jobs that ended more than `days` days ago and have no file left; answers how many."""
    return int((await tx.execute(DELETE_OLD_JOBS, days, limit)).removeprefix("DELETE "))


LIST_PUBLISHED_KEYS = """
SELECT a.storage_key FROM jobs.artifacts AS a WHERE a.storage_key = ANY($1::text[])
"""


async def list_published_keys(conn: ReadConn, keys: Sequence[str]) -> list[str]:
    """Those of `keys` that a job has published."""
    return [row["storage_key"] for row in await conn.fetch(LIST_PUBLISHED_KEYS, keys)]


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
