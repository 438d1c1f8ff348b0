"""What the module keeps of a person, and its deletion."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from app.kernel.database import ReadConn, Tx
from app.kernel.ids import UserId

LIST_ARTIFACT_KEYS = """
SELECT p.id, a.storage_key
FROM (SELECT j.id FROM jobs.jobs AS j WHERE j.user_id = $1 AND j.id > $2 ORDER BY j.id LIMIT $3) AS p
LEFT JOIN jobs.artifacts AS a ON a.job_id = p.id AND a.deleted_at IS NULL
ORDER BY p.id
"""


async def list_artifact_keys(conn: ReadConn, user_id: UserId, after: UUID, limit: int) -> tuple[UUID | None, list[str]]:
    """The last of the next `limit` jobs of a user, None after the last one, and the storage keys of their files."""
    rows = await conn.fetch(LIST_ARTIFACT_KEYS, user_id, after, limit)
    last = rows[-1]["id"] if rows else None
    return last, [row["storage_key"] for row in rows if row["storage_key"] is not None]


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


DELETE_USER_DELIVERIES = """
DELETE FROM jobs.webhook_deliveries
WHERE user_id = $1 AND id IN (SELECT d.id FROM jobs.webhook_deliveries AS d WHERE d.user_id = $1 LIMIT $2)
"""


async def delete_user_deliveries(tx: Tx, user_id: UserId, limit: int) -> int:
    """How many there were to delete, at most `limit`."""
    return int((await tx.execute(DELETE_USER_DELIVERIES, user_id, limit)).removeprefix("DELETE "))


DELETE_USER_MESSAGES = """
DELETE FROM jobs.webhook_messages
WHERE user_id = $1 AND id IN (SELECT m.id FROM jobs.webhook_messages AS m WHERE m.user_id = $1 LIMIT $2)
"""


async def delete_user_messages(tx: Tx, user_id: UserId, limit: int) -> int:
    """How many there were to delete, at most `limit`."""
    return int((await tx.execute(DELETE_USER_MESSAGES, user_id, limit)).removeprefix("DELETE "))


DELETE_USER_INVOICES = """
DELETE FROM jobs.invoices
WHERE user_id = $1 AND id IN (SELECT i.id FROM jobs.invoices AS i WHERE i.user_id = $1 LIMIT $2)
"""


async def delete_user_invoices(tx: Tx, user_id: UserId, limit: int) -> int:
    """How many there were to delete, at most `limit`."""
    return int((await tx.execute(DELETE_USER_INVOICES, user_id, limit)).removeprefix("DELETE "))


DELETE_USER_SENDS = """
DELETE FROM jobs.mail_sends WHERE (job_id, send_at) IN (
    SELECT s.job_id, s.send_at FROM jobs.mail_sends AS s
    WHERE s.sender_id = $1 OR s.recipient_hash = ANY($2::bytea[]) LIMIT $3
)
"""


async def delete_user_sends(tx: Tx, user_id: UserId, address_hashes: Sequence[bytes], limit: int) -> int:
    """What is counted of mail from the user or to one of the addresses: how many there were, at most `limit`."""
    return int((await tx.execute(DELETE_USER_SENDS, user_id, address_hashes, limit)).removeprefix("DELETE "))


DELETE_USER_ROWS = """
WITH endpoints AS (
    DELETE FROM jobs.webhook_endpoints WHERE user_id = $1
), suspension AS (
    DELETE FROM jobs.suspended_users WHERE user_id = $1
)
DELETE FROM jobs.email_suppressions WHERE address_hash = ANY($2::bytea[])
"""


async def delete_user_rows(tx: Tx, user_id: UserId, address_hashes: Sequence[bytes]) -> None:
    """Webhook endpoints and suppressions, of which there are few."""
    await tx.execute(DELETE_USER_ROWS, user_id, address_hashes)
