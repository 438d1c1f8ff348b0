"""What the module keeps of a person, and its deletion."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from app.kernel.database import ReadConn, Tx
from app.kernel.ids import UserId

LIST_ARTIFACT_KEYS = """
SELECT a.storage_key FROM jobs.artifacts AS a
WHERE a.deleted_at IS NULL AND a.job_id IN (SELECT j.id FROM jobs.jobs AS j WHERE j.user_id = $1)
"""


async def list_artifact_keys(conn: ReadConn, user_id: UserId) -> list[str]:
    """Storage keys of all files of a user's jobs."""
    return [row["storage_key"] for row in await conn.fetch(LIST_ARTIFACT_KEYS, user_id)]


@dataclass(frozen=True, slots=True)
class AddressedJob:
    """A job of the program itself whose arguments hold an e-mail address. `args` is JSON text."""

    id: UUID
    args: str
    is_over: bool


# Jobs without an owner are one range of `jobs_user_idx`.
LIST_ADDRESSED_JOBS = """
SELECT j.id, j.args::text AS args, j.state >= 2 AS is_over FROM jobs.jobs AS j
WHERE j.user_id IS NULL AND j.id > $1 AND j.args::text LIKE '%@%'
ORDER BY j.id LIMIT $2
"""


async def list_addressed_jobs(conn: ReadConn, after: UUID, limit: int) -> list[AddressedJob]:
    """A page of jobs without an owner that hold an address, the oldest first."""
    return [AddressedJob(**row) for row in await conn.fetch(LIST_ADDRESSED_JOBS, after, limit)]


DELETE_JOBS = """
DELETE FROM jobs.jobs WHERE id = ANY($1::uuid[])
"""


async def delete_jobs(tx: Tx, ids: Sequence[UUID]) -> None:
    """With their files' rows and failed runs."""
    await tx.execute(DELETE_JOBS, ids)


DELETE_USER_JOBS = """
DELETE FROM jobs.jobs WHERE id IN (SELECT j.id FROM jobs.jobs AS j WHERE j.user_id = $1 LIMIT $2)
"""


async def delete_user_jobs(tx: Tx, user_id: UserId, limit: int) -> int:
    """How many there were to delete, at most `limit`."""
    return int((await tx.execute(DELETE_USER_JOBS, user_id, limit)).removeprefix("DELETE "))


DELETE_USER_ROWS = """
WITH endpoints AS (
    DELETE FROM jobs.webhook_endpoints WHERE user_id = $1
), deliveries AS (
    DELETE FROM jobs.webhook_deliveries WHERE user_id = $1
), messages AS (
    DELETE FROM jobs.webhook_messages WHERE user_id = $1
), invoices AS (
    DELETE FROM jobs.invoices WHERE user_id = $1
), suspension AS (
    DELETE FROM jobs.suspended_users WHERE user_id = $1
), sends AS (
    DELETE FROM jobs.mail_sends WHERE sender_id = $1 OR recipient_hash = ANY($2::bytea[])
)
DELETE FROM jobs.email_suppressions WHERE address_hash = ANY($2::bytea[])
"""


async def delete_user_rows(tx: Tx, user_id: UserId, address_hashes: Sequence[bytes]) -> None:
    """Webhooks, invoices, and what is counted of mail."""
    await tx.execute(DELETE_USER_ROWS, user_id, address_hashes)
