"""Schedules."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

import orjson

from app.jobs.records import (
    DueSchedule,
    ScheduleRow,
)
from app.jobs.records.administration import ScheduleStatus
from app.kernel.database import ReadConn, Tx
from app.kernel.ids import UserId

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
WHERE s.next_run_at <= $1 AND s.paused_at IS NULL
ORDER BY s.name
FOR UPDATE SKIP LOCKED
"""


async def lock_due_schedules(tx: Tx, now: datetime) -> list[DueSchedule]:
    """Schedules that no other worker advances at this moment."""
    return [DueSchedule(**row) for row in await tx.fetch(LOCK_DUE_SCHEDULES, now)]


SET_NEXT_RUN = """
UPDATE jobs.schedules
SET last_run_at = next_run_at, next_run_at = $2, last_job_id = coalesce($3, last_job_id) WHERE name = $1
"""


async def set_next_run(tx: Tx, name: str, next_run_at: datetime, job_id: UUID | None) -> None:
    """Moves a schedule to its next time; `job_id` is the job of the newest time that has come, None: it was missed."""
    await tx.execute(SET_NEXT_RUN, name, next_run_at, job_id)


LIST_SCHEDULES = """
SELECT s.name, s.kind, s.cron, s.timezone, s.paused_at, s.next_run_at, s.last_run_at, s.last_job_id,
       j.state AS job_state, j.attempt AS job_attempt, j.run_at <= now() AS job_is_due, j.finished_at AS job_finished_at
FROM jobs.schedules AS s LEFT JOIN jobs.jobs AS j ON j.id = s.last_job_id
ORDER BY s.name
"""


async def list_schedules(conn: ReadConn) -> list[ScheduleStatus]:
    """All schedules, by name, with the job of the newest run of each."""
    return [ScheduleStatus(**row) for row in await conn.fetch(LIST_SCHEDULES)]


LOCK_SCHEDULE = """
SELECT s.name, s.kind, s.args, s.cron, s.timezone, s.catch_up, s.next_run_at FROM jobs.schedules AS s
WHERE s.name = $1
FOR UPDATE
"""


async def lock_schedule(tx: Tx, name: str) -> DueSchedule | None:
    """A schedule as it stays until the transaction ends."""
    row = await tx.fetchrow(LOCK_SCHEDULE, name)
    return None if row is None else DueSchedule(**row)


PAUSE_SCHEDULE = """
UPDATE jobs.schedules SET paused_at = coalesce(paused_at, now()) WHERE name = $1
"""


async def pause_schedule(tx: Tx, name: str) -> None:
    await tx.execute(PAUSE_SCHEDULE, name)


RESUME_SCHEDULE = """
UPDATE jobs.schedules SET paused_at = NULL, next_run_at = $2 WHERE name = $1 AND paused_at IS NOT NULL
"""


async def resume_schedule(tx: Tx, name: str, next_run_at: datetime) -> None:
    """One that is not paused keeps its next time."""
    await tx.execute(RESUME_SCHEDULE, name, next_run_at)


SET_LAST_RUN = """
UPDATE jobs.schedules SET last_run_at = $2, last_job_id = $3 WHERE name = $1
"""


async def set_last_run(tx: Tx, name: str, last_run_at: datetime, job_id: UUID) -> None:
    await tx.execute(SET_LAST_RUN, name, last_run_at, job_id)


IS_JOB_OF_SCHEDULE = """
SELECT EXISTS (
    SELECT FROM jobs.jobs WHERE id = $1 AND user_id = $2 AND unique_key = $3 AND priority = $4
)
"""


async def is_job_of_schedule(conn: ReadConn, user_id: UserId, job_id: UUID, unique_key: str, priority: int) -> bool:
    """Whether a user's job has the key and the priority of those that a schedule submits."""
    return bool(await conn.fetchval(IS_JOB_OF_SCHEDULE, job_id, user_id, unique_key, priority))
