"""Users whose work does not run, because their account is banned or closed."""

from uuid import UUID

from app.kernel.database import Tx
from app.kernel.ids import UserId

# Running jobs are locked in the order in which heartbeats and ends lock them.
SUSPEND_USER = """
WITH suspended AS (
    INSERT INTO jobs.suspended_users (user_id, reason, since) VALUES ($1, $2, now())
    ON CONFLICT (user_id) DO UPDATE SET reason = excluded.reason, since = excluded.since
), deliveries AS (
    UPDATE jobs.webhook_deliveries SET state = 'failed', last_error = $2, next_at = NULL
    WHERE user_id = $1 AND state = 'pending'
), running AS (
    SELECT id FROM jobs.jobs WHERE user_id = $1 AND state = 1 ORDER BY id FOR UPDATE
)
UPDATE jobs.jobs AS j
SET cancel_requested_at = coalesce(j.cancel_requested_at, now()), version = j.version + 1
FROM running WHERE j.id = running.id
RETURNING j.id
"""


async def suspend_user(tx: Tx, user_id: UserId, reason: str) -> list[UUID]:
    """From now on no claim starts what the user has put in before, and pending deliveries have failed; both tell
    `reason`. Asks running jobs to stop, and answers which.
    """
    return [row["id"] for row in await tx.fetch(SUSPEND_USER, user_id, reason)]


RESUME_USER = """
DELETE FROM jobs.suspended_users WHERE user_id = $1
"""


async def resume_user(tx: Tx, user_id: UserId) -> None:
    await tx.execute(RESUME_USER, user_id)
