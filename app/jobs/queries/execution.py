"""Claiming, running and finishing jobs."""

from collections.abc import Mapping, Sequence
from uuid import UUID

from app.jobs.records import (
    ClaimedJob,
    Heartbeat,
    NewArtifact,
    Outcome,
    Transition,
)
from app.kernel.database import ReadConn, Tx

# Rows that another transaction has locked are skipped, so that two overlapping batches can never wait for each other.
# What may not start goes back to the relay, and never stays believed to be in Redis, whose id is forgotten: what is too
# early (its id was handed out by another clock), what belongs to a queue that was paused a moment ago, and what goes
# beyond its user's cap, for which the relay waits. That two workers may exceed a cap together by a few does no harm.
# What a user has put in whose account is banned or closed since is cancelled.
CLAIM_JOBS = """
WITH locked AS (
    SELECT j.id, j.user_id, j.lane, j.run_at > now() AS is_early,
           (SELECT s.reason FROM jobs.suspended_users AS s
            WHERE s.user_id = j.user_id AND s.since > j.created_at) AS suspended_for
    FROM jobs.jobs AS j
    WHERE j.id = ANY($1::uuid[]) AND j.state = 0
    FOR UPDATE OF j SKIP LOCKED
), judged AS (
    SELECT l.id, l.is_early, CASE WHEN NOT l.is_early THEN l.suspended_for END AS suspended_for,
           NOT l.is_early AND l.suspended_for IS NULL
           AND l.lane NOT IN (SELECT p.lane FROM jobs.lanes AS p WHERE p.paused_at IS NOT NULL)
           AND (l.user_id IS NULL OR l.lane <> ALL($5::text[])
                OR row_number() OVER (PARTITION BY l.user_id, l.lane, l.is_early ORDER BY l.id)
                   + (SELECT count(*) FROM jobs.jobs AS r
                      WHERE r.user_id = l.user_id AND r.lane = l.lane AND r.state = 1)
                   <= ($6::integer[])[array_position($5::text[], l.lane)]) AS is_allowed
    FROM locked AS l
), refused AS (
    UPDATE jobs.jobs AS j SET dispatched_at = NULL, is_due = NOT d.is_early
    FROM judged AS d WHERE j.id = d.id AND NOT d.is_allowed AND d.suspended_for IS NULL
), ended AS (
    UPDATE jobs.jobs AS j
    SET state = 4, finished_at = now(), dispatched_at = NULL, version = j.version + 1,
        error = jsonb_build_object('code', d.suspended_for, 'message', 'The account was banned or closed.')
    FROM judged AS d WHERE j.id = d.id AND d.suspended_for IS NOT NULL
)
UPDATE jobs.jobs AS j
SET state = 1, attempt = j.attempt + 1, run_token = $2, worker_id = $3, version = j.version + 1,
    started_at = now(), lease_until = now() + make_interval(secs => $4), dispatched_at = NULL, progress = NULL
FROM judged AS d
WHERE j.id = d.id AND d.is_allowed
RETURNING j.id, j.user_id, j.kind, j.lane AS queue, j.args, j.attempt, j.max_attempts, j.rescues, j.timeout_seconds,
          j.run_token, j.created_at, extract(epoch FROM now() - j.run_at)::float8 AS waited,
          extract(epoch FROM now() - j.postponed_since)::float8 AS postponed, j.trace_parent
"""


async def claim_jobs(
    tx: Tx, ids: Sequence[UUID], *, run_token: UUID, worker_id: str, lease_seconds: float, caps: Mapping[str, int]
) -> list[ClaimedJob]:
    """Takes those of `ids` that are due and free. `caps`: jobs of one user that run at a time, by queue."""
    rows = await tx.fetch(CLAIM_JOBS, ids, run_token, worker_id, lease_seconds, list(caps), list(caps.values()))
    return [ClaimedJob(**row) for row in rows]


LIST_UNDECIDED_JOBS = """
SELECT j.id FROM jobs.jobs AS j WHERE j.id = ANY($1::uuid[]) AND j.state = 0 AND j.dispatched_at IS NOT NULL
"""


async def list_undecided_jobs(conn: ReadConn, ids: Sequence[UUID]) -> list[UUID]:
    """Those of `ids` that are to be run by their ids in Redis: a claim has skipped them, because they were locked."""
    return [row["id"] for row in await conn.fetch(LIST_UNDECIDED_JOBS, ids)]


TAKE_DISPATCHED_JOBS = """
SELECT d.id FROM unnest($1::text[], $2::integer[]) AS w(lane, count) CROSS JOIN LATERAL (
    SELECT j.id FROM jobs.jobs AS j
    WHERE j.lane = w.lane AND j.state = 0 AND j.dispatched_at IS NOT NULL
    ORDER BY j.dispatched_at
    LIMIT w.count
    FOR UPDATE SKIP LOCKED
) AS d
LIMIT $3
"""


async def take_dispatched_jobs(tx: Tx, free_slots: Mapping[str, int], total: int) -> list[UUID]:
    """Locks up to `total` jobs of the wanted queues whose ids are believed to be in Redis."""
    rows = await tx.fetch(TAKE_DISPATCHED_JOBS, list(free_slots), list(free_slots.values()), total)
    return [row["id"] for row in rows]


# A cancel that was asked for while the job ran wins over another attempt, but not over a result.
FINISH_JOBS = """
WITH outcome AS (
    SELECT id, run_token, state, result, error, delay, give_back, postponed, progress
    FROM unnest($1::uuid[], $2::uuid[], $3::smallint[], $4::jsonb[], $5::jsonb[], $6::float8[], $7::boolean[],
                $8::boolean[], $16::jsonb[])
         AS o(id, run_token, state, result, error, delay, give_back, postponed, progress)
), locked AS (
    SELECT j.id, CASE WHEN o.state = 0 AND j.cancel_requested_at IS NOT NULL THEN 4::smallint ELSE o.state END AS state,
           o.result, o.error, o.delay, o.give_back, o.postponed, o.progress,
           o.state IN (0, 3) AND o.error IS NOT NULL AS has_failed, j.started_at, j.worker_id
    FROM jobs.jobs AS j JOIN outcome AS o ON o.id = j.id AND o.run_token = j.run_token
    WHERE j.state = 1
    ORDER BY j.id
    FOR UPDATE OF j
), finished AS (
    UPDATE jobs.jobs AS j
    SET state = l.state, result = l.result, error = CASE WHEN l.state <> 2 THEN coalesce(l.error, j.error) END,
        progress = coalesce(l.progress, j.progress), version = j.version + 1,
        attempt = j.attempt - l.give_back::integer,
        postponed_since = CASE WHEN l.postponed AND l.state = 0 THEN coalesce(j.postponed_since, now()) END,
        run_at = CASE WHEN l.state = 0 THEN now() + make_interval(secs => l.delay) ELSE j.run_at END,
        is_due = l.delay = 0,
        finished_at = CASE WHEN l.state >= 2 THEN now() END,
        dispatched_at = CASE WHEN l.state = 0 AND l.delay = 0 THEN now() END,
        run_token = NULL, lease_until = NULL
    FROM locked AS l
    WHERE j.id = l.id
    RETURNING j.id, j.user_id, j.kind, j.lane AS queue, j.priority, j.state, j.version, j.trace_parent
), noted AS (
    INSERT INTO jobs.attempts (job_id, n, started_at, ended_at, outcome, error, worker_id)
    SELECT l.id, (SELECT coalesce(max(a.n), 0) + 1 FROM jobs.attempts AS a WHERE a.job_id = l.id), l.started_at, now(),
           CASE l.state WHEN 0 THEN 'retried' WHEN 3 THEN 'failed' ELSE 'cancelled' END, l.error, l.worker_id
    FROM locked AS l WHERE l.has_failed
), published AS (
    INSERT INTO jobs.artifacts (job_id, name, user_id, content_type, size, sha256, storage_key, expires_at)
    SELECT a.job_id, a.name, f.user_id, a.content_type, a.size, a.sha256, a.storage_key,
           now() + make_interval(days => a.days)
    FROM unnest($9::uuid[], $10::text[], $11::text[], $12::bigint[], $13::bytea[], $14::text[], $15::integer[])
         AS a(job_id, name, content_type, size, sha256, storage_key, days)
    JOIN finished AS f ON f.id = a.job_id AND f.state = 2
    ON CONFLICT (job_id, name) DO UPDATE
    SET content_type = excluded.content_type, size = excluded.size, sha256 = excluded.sha256,
        storage_key = excluded.storage_key, created_at = now(), expires_at = excluded.expires_at, deleted_at = NULL
)
SELECT id, user_id, kind, queue, priority, state, version, trace_parent FROM finished
"""


async def finish_jobs(tx: Tx, outcomes: Sequence[Outcome], artifacts: Sequence[NewArtifact] = ()) -> list[Transition]:
    """Ends runs, publishes their files, notes failed ones. A run that no longer owns its job is not in the answer."""
    rows = await tx.fetch(
        FINISH_JOBS,
        [outcome.job_id for outcome in outcomes],
        [outcome.run_token for outcome in outcomes],
        [outcome.state for outcome in outcomes],
        [outcome.result for outcome in outcomes],
        [outcome.error for outcome in outcomes],
        [outcome.delay for outcome in outcomes],
        [outcome.give_back for outcome in outcomes],
        [outcome.postponed for outcome in outcomes],
        [artifact.job_id for artifact in artifacts],
        [artifact.name for artifact in artifacts],
        [artifact.content_type for artifact in artifacts],
        [artifact.size for artifact in artifacts],
        [artifact.sha256 for artifact in artifacts],
        [artifact.storage_key for artifact in artifacts],
        [artifact.days for artifact in artifacts],
        [outcome.progress for outcome in outcomes],
    )
    return [Transition(**row) for row in rows]


LOCK_RUN = """
SELECT j.id FROM jobs.jobs AS j WHERE j.id = $1 AND j.run_token = $2 AND j.state = 1 FOR UPDATE
"""


async def lock_run(tx: Tx, job_id: UUID, run_token: UUID) -> bool:
    """Whether this run still owns its job; if so, no other run can take it before `tx` ends."""
    return await tx.fetchval(LOCK_RUN, job_id, run_token) is not None


EXTEND_LEASES = """
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
RETURNING j.id, (j.cancel_requested_at IS NOT NULL
                 OR EXISTS (SELECT 1 FROM jobs.suspended_users AS s
                            WHERE s.user_id = j.user_id AND s.since > j.created_at)) AS cancel_requested
"""


async def extend_leases(
    tx: Tx, runs: Sequence[tuple[UUID, UUID]], progress: Sequence[str | None], *, lease_seconds: float
) -> list[Heartbeat]:
    """Prolongs the leases of `(job id, run token)` and writes new progress. Lost runs are missing from the answer."""
    rows = await tx.fetch(
        EXTEND_LEASES, [job_id for job_id, _ in runs], [token for _, token in runs], progress, lease_seconds
    )
    return [Heartbeat(**row) for row in rows]


LIST_PAUSED_QUEUES = """
SELECT l.lane AS queue FROM jobs.lanes AS l WHERE l.paused_at IS NOT NULL
"""


async def list_paused_queues(conn: ReadConn) -> list[str]:
    return [row["queue"] for row in await conn.fetch(LIST_PAUSED_QUEUES)]
