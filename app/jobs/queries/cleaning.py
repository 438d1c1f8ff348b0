"""What is over its time."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from app.kernel.database import ReadConn, Tx
from app.kernel.ids import UserId, first_id_of

LIST_EXPIRED_ARTIFACTS = """
SELECT a.expires_at, a.storage_key FROM jobs.artifacts AS a
WHERE a.deleted_at IS NULL AND a.expires_at <= now() AND (a.expires_at, a.storage_key) > ($1, $2)
ORDER BY a.expires_at, a.storage_key LIMIT $3
"""


async def list_expired_artifacts(conn: ReadConn, after: tuple[datetime, str], limit: int) -> list[tuple[datetime, str]]:
    """When files ended whose time is over, and their storage keys, from behind `after`."""
    return [(row["expires_at"], row["storage_key"]) for row in await conn.fetch(LIST_EXPIRED_ARTIFACTS, *after, limit)]


LIST_USERS_OVER_FILE_LIMIT = """
SELECT a.user_id FROM jobs.artifacts AS a
WHERE a.deleted_at IS NULL AND a.expires_at > now() AND a.user_id IS NOT NULL
GROUP BY a.user_id HAVING sum(a.size) > $1 AND count(*) > 1
"""


async def list_users_over_file_limit(conn: ReadConn, max_bytes: int) -> list[UserId]:
    """The users who have files of more than `max_bytes` in all, unless it is a single one."""
    return [row["user_id"] for row in await conn.fetch(LIST_USERS_OVER_FILE_LIMIT, max_bytes)]


EXPIRE_SURPLUS = """
UPDATE jobs.artifacts AS a SET expires_at = now()
FROM (
    SELECT f.storage_key, sum(f.size) OVER newest AS bytes, row_number() OVER newest AS position
    FROM jobs.artifacts AS f
    WHERE f.user_id = $1 AND f.deleted_at IS NULL AND f.expires_at > now()
    WINDOW newest AS (ORDER BY f.created_at DESC, f.storage_key)
) AS kept
WHERE a.storage_key = kept.storage_key AND kept.bytes > $2 AND kept.position > 1
RETURNING a.storage_key
"""


async def expire_surplus(tx: Tx, user_id: UserId, max_bytes: int) -> list[str]:
    """Ends the time of a user's files but for the newest that have up to `max_bytes` in all, or for the newest one;
    answers with their storage keys.
    """
    return [row["storage_key"] for row in await tx.fetch(EXPIRE_SURPLUS, user_id, max_bytes)]


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


# The newest job that may have such an attempt bounds the look at the primary key, as ids begin with their time: an hour
# later, because that is the time of the host that made the id.
DELETE_OLD_ATTEMPTS = """
DELETE FROM jobs.attempts WHERE (job_id, n) IN (
    SELECT a.job_id, a.n FROM jobs.attempts AS a
    WHERE a.job_id < $1 AND a.ended_at < now() - make_interval(days => $2)
    LIMIT $3
)
"""


async def delete_old_attempts(tx: Tx, days: int, now: datetime, limit: int) -> int:
    """Deletes up to `limit` failed runs that ended more than `days` days ago, of jobs that go on; answers how many."""
    newest = first_id_of(now - timedelta(days=days, hours=-1))
    return int((await tx.execute(DELETE_OLD_ATTEMPTS, newest, days, limit)).removeprefix("DELETE "))


LIST_PUBLISHED_KEYS = """
SELECT a.storage_key FROM jobs.artifacts AS a WHERE a.storage_key = ANY($1::text[])
"""


async def list_published_keys(conn: ReadConn, keys: Sequence[str]) -> list[str]:
    """Those of `keys` that a job has published."""
    return [row["storage_key"] for row in await conn.fetch(LIST_PUBLISHED_KEYS, keys)]
