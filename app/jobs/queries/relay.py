"""What the relay asks and moves."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from app.jobs.records import (
    DispatchedJob,
    QueueDepth,
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
    run_at = now(), is_due = true, dispatched_at = now(), run_token = NULL, lease_until = NULL
FROM expired
WHERE j.id = expired.id
RETURNING j.id, j.user_id, j.kind, j.lane AS queue, j.priority, j.state, j.version, j.trace_parent
"""


async def rescue_jobs(tx: Tx, *, max_rescues: int, limit: int) -> list[Transition]:
    """Takes jobs away from workers that let their lease end; a job that killed too many of them fails."""
    return [Transition(**row) for row in await tx.fetch(RESCUE_JOBS, max_rescues, limit)]


# A job that was put in to run later, or waits for its next attempt, is not looked at before its time: only then does it
# come where users take turns.
STAGE_JOBS = """
WITH due AS (
    SELECT d.id FROM unnest($1::text[]) AS l(lane) CROSS JOIN LATERAL (
        SELECT j.id FROM jobs.jobs AS j
        WHERE j.lane = l.lane AND j.state = 0 AND j.dispatched_at IS NULL AND NOT j.is_due AND j.run_at <= now()
        ORDER BY j.run_at
        LIMIT $2
        FOR UPDATE SKIP LOCKED
    ) AS d
)
UPDATE jobs.jobs AS j SET is_due = true FROM due WHERE j.id = due.id
"""


async def stage_jobs(tx: Tx, queues: Sequence[str], limit: int) -> int:
    """Marks jobs whose time has come as due, up to `limit` of each queue, those first that are due for longest."""
    return int((await tx.execute(STAGE_JOBS, queues, limit)).removeprefix("UPDATE "))


# Users take turns: the first job of each, then the second of each. The recursion steps from one user to the next
# through an index that holds nothing but due jobs, however many each user has, and from the last user to the first; it
# begins behind the user of the last turn. Jobs without a user get half of the room, as far as they need it.
TAKE_WAITING_JOBS = """
WITH RECURSIVE turns AS (
    SELECT $3::uuid AS user_id, false AS is_second_lap, 0::bigint AS number
    UNION ALL
    SELECT n.user_id, n.is_second_lap, t.number + 1 FROM turns AS t CROSS JOIN LATERAL (
        (SELECT j.user_id, t.is_second_lap FROM jobs.jobs AS j
         WHERE j.lane = $1 AND j.state = 0 AND j.dispatched_at IS NULL AND j.is_due AND j.user_id > t.user_id
           AND (NOT t.is_second_lap OR j.user_id <= $3)
         ORDER BY j.user_id LIMIT 1)
        UNION ALL
        (SELECT j.user_id, true FROM jobs.jobs AS j
         WHERE j.lane = $1 AND j.state = 0 AND j.dispatched_at IS NULL AND j.is_due AND j.user_id <= $3
           AND NOT t.is_second_lap
         ORDER BY j.user_id LIMIT 1)
        ORDER BY is_second_lap LIMIT 1
    ) AS n
    WHERE t.number < $2
), locked AS (
    SELECT p.id, p.user_id, p.priority, p.run_at, t.number FROM turns AS t CROSS JOIN LATERAL (
        SELECT j.id, j.user_id, j.priority, j.run_at FROM jobs.jobs AS j
        WHERE j.lane = $1 AND j.user_id = t.user_id AND j.state = 0 AND j.dispatched_at IS NULL AND j.is_due
          AND j.run_at <= now()
        ORDER BY j.priority, j.run_at
        LIMIT greatest(0, least((SELECT 1 + 2 * $2::bigint / count(*) FROM turns),
                                $4::bigint - (SELECT count(*) FROM jobs.jobs AS r
                                              WHERE r.user_id = t.user_id AND r.lane = $1 AND r.state = 1)))
        FOR UPDATE SKIP LOCKED
    ) AS p
    WHERE t.number > 0
), locked_of_the_system AS (
    SELECT j.id, j.priority, j.run_at FROM jobs.jobs AS j
    WHERE j.lane = $1 AND j.user_id IS NULL AND j.state = 0 AND j.dispatched_at IS NULL AND j.is_due
      AND j.run_at <= now()
    ORDER BY j.priority, j.run_at
    LIMIT $2
    FOR UPDATE SKIP LOCKED
), of_users AS (
    SELECT id, user_id, number, row_number() OVER (PARTITION BY number ORDER BY priority, run_at, id) AS turn
    FROM locked
), due AS (
    SELECT id, false AS is_system, turn, row_number() OVER (ORDER BY turn, number) AS rank FROM of_users
    UNION ALL
    SELECT id, true, 0, row_number() OVER (ORDER BY priority, run_at, id) FROM locked_of_the_system
), chosen AS (
    SELECT id, is_system, turn, rank FROM due ORDER BY rank, is_system = $5 DESC LIMIT $2
), marked AS (
    UPDATE jobs.jobs AS j SET dispatched_at = now() FROM chosen AS c WHERE j.id = c.id
    RETURNING j.id, j.user_id, j.lane, j.priority, c.rank, c.is_system
), looked_at AS (
    SELECT count(*) - 1 AS users, (SELECT user_id FROM turns ORDER BY number DESC LIMIT 1) AS last_user,
           (SELECT count(*) FROM of_users WHERE turn = 1) = (SELECT count(*) FROM chosen WHERE turn = 1) AS all_served
    FROM turns
)
SELECT m.id, m.user_id, m.lane AS queue, m.priority,
       CASE WHEN l.users = $2 AND l.all_served THEN l.last_user
            ELSE coalesce((SELECT s.user_id FROM marked AS s WHERE NOT s.is_system ORDER BY s.rank DESC LIMIT 1), $3)
       END AS last_user
FROM looked_at AS l LEFT JOIN marked AS m ON true
ORDER BY m.rank, m.is_system = $5 DESC
"""


async def take_waiting_jobs(
    tx: Tx, queue: str, limit: int, *, after: UUID, cap: int | None, system_first: bool
) -> tuple[list[WaitingJob], UUID]:
    """Marks up to `limit` due jobs of a queue as dispatched, beginning with the user behind `after`.

    Of a user, no more run at a time than `cap`. Answers the jobs, and the user behind whom the next turn begins.
    """
    rows = await tx.fetch(TAKE_WAITING_JOBS, queue, limit, after, cap, system_first)
    jobs = [
        WaitingJob(row["id"], row["user_id"], row["queue"], row["priority"]) for row in rows if row["id"] is not None
    ]
    return jobs, rows[0]["last_user"]


GET_NEXT_DUE = """
SELECT extract(epoch FROM min(n.run_at) - now())::float8 FROM unnest($1::text[]) AS l(lane) CROSS JOIN LATERAL (
    SELECT j.run_at FROM jobs.jobs AS j
    WHERE j.lane = l.lane AND j.state = 0 AND j.dispatched_at IS NULL AND NOT j.is_due
    ORDER BY j.run_at LIMIT 1
) AS n
"""


async def get_next_due(conn: ReadConn, queues: Sequence[str]) -> float | None:
    """Seconds until the next job of these queues falls due."""
    seconds: float | None = await conn.fetchval(GET_NEXT_DUE, queues)
    return seconds


LIST_WAITING_QUEUES = """
SELECT l.lane AS queue FROM unnest($1::text[]) AS l(lane)
WHERE EXISTS (SELECT 1 FROM jobs.jobs AS j
              WHERE j.lane = l.lane AND j.state = 0 AND j.dispatched_at IS NULL AND j.is_due)
"""


async def list_waiting_queues(conn: ReadConn, queues: Sequence[str]) -> list[str]:
    """Those of `queues` that have due jobs outside Redis."""
    return [row["queue"] for row in await conn.fetch(LIST_WAITING_QUEUES, queues)]


GET_TIME = """
SELECT now()
"""


async def get_time(conn: ReadConn) -> datetime:
    """The time of the database, by which all hosts agree on what is due."""
    now: datetime = await conn.fetchval(GET_TIME)
    return now


LIST_DISPATCHED_JOBS = """
SELECT j.id, j.user_id, j.lane AS queue, j.priority, j.dispatched_at FROM jobs.jobs AS j
WHERE j.lane = $1 AND j.state = 0 AND (j.dispatched_at, j.id) > ($2, $3::uuid)
  AND j.dispatched_at < now() - make_interval(secs => $4)
ORDER BY j.dispatched_at, j.id
LIMIT $5
"""


async def list_dispatched_jobs(
    conn: ReadConn, queue: str, *, after: tuple[datetime, UUID], seconds: float, limit: int
) -> list[DispatchedJob]:
    """Queued jobs that went to Redis so long ago, from behind the one that `after` names by moment and id."""
    return [DispatchedJob(**row) for row in await conn.fetch(LIST_DISPATCHED_JOBS, queue, *after, seconds, limit)]


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


# Nothing is counted beyond `$2`, so that no backlog makes the question long. Where more jobs wait, the number is `$2`
# and the age is that of the oldest of those that were counted; where more have ended within a minute, the rate is that
# of the newest.
LIST_QUEUE_DEPTHS = """
WITH RECURSIVE found AS (
    SELECT ''::text AS lane
    UNION ALL
    SELECT least(
        (SELECT j.lane FROM jobs.jobs AS j
         WHERE j.state = 0 AND j.dispatched_at IS NOT NULL AND j.lane > f.lane ORDER BY j.lane LIMIT 1),
        (SELECT j.lane FROM jobs.jobs AS j
         WHERE j.state = 0 AND j.dispatched_at IS NULL AND j.is_due AND j.lane > f.lane ORDER BY j.lane LIMIT 1))
    FROM found AS f WHERE f.lane IS NOT NULL
), running AS (
    SELECT lane, count(*) AS running FROM jobs.jobs WHERE state = 1 GROUP BY lane
), known AS (
    SELECT unnest($1::text[]) AS lane UNION SELECT lane FROM found WHERE lane <> '' UNION SELECT lane FROM running
), newest AS (
    SELECT lane, state, finished_at FROM jobs.jobs
    WHERE state >= 2 AND finished_at > now() - interval '1 minute'
    ORDER BY finished_at DESC LIMIT $2
), span AS (
    SELECT CASE WHEN count(*) < $2 THEN 60
                ELSE greatest(extract(epoch FROM now() - min(finished_at)), 0.001) END AS seconds
    FROM newest
), finished AS (
    SELECT n.lane, (count(*) * 60 / min(s.seconds))::bigint AS finished,
           (count(*) FILTER (WHERE n.state = 3) * 60 / min(s.seconds))::bigint AS failed
    FROM newest AS n CROSS JOIN span AS s
    GROUP BY n.lane
)
SELECT k.lane AS queue, p.paused_at IS NOT NULL AS paused, w.waiting,
       CASE WHEN w.oldest IS NOT NULL THEN greatest(0, extract(epoch FROM now() - w.oldest)) END::float8
           AS oldest_seconds,
       coalesce(r.running, 0) AS running, coalesce(f.finished, 0) AS finished,
       coalesce(f.failed, 0) AS failed
FROM known AS k
CROSS JOIN LATERAL (
    SELECT count(*) AS waiting, min(c.run_at) AS oldest FROM (
        (SELECT j.run_at FROM jobs.jobs AS j
         WHERE j.lane = k.lane AND j.state = 0 AND j.dispatched_at IS NOT NULL ORDER BY j.dispatched_at LIMIT $2)
        UNION ALL
        (SELECT j.run_at FROM jobs.jobs AS j
         WHERE j.lane = k.lane AND j.state = 0 AND j.dispatched_at IS NULL AND j.is_due LIMIT $2)
        UNION ALL
        (SELECT j.run_at FROM jobs.jobs AS j
         WHERE j.lane = k.lane AND j.state = 0 AND j.dispatched_at IS NULL AND NOT j.is_due AND j.run_at <= now()
         ORDER BY j.run_at LIMIT $2)
        LIMIT $2
    ) AS c
) AS w
LEFT JOIN running AS r ON r.lane = k.lane
LEFT JOIN finished AS f ON f.lane = k.lane
LEFT JOIN jobs.lanes AS p ON p.lane = k.lane
ORDER BY k.lane
"""


async def list_queue_depths(conn: ReadConn, queues: Sequence[str], limit: int) -> list[QueueDepth]:
    """These queues, and all others in which something is due or runs."""
    return [QueueDepth(**row) for row in await conn.fetch(LIST_QUEUE_DEPTHS, queues, limit)]


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
