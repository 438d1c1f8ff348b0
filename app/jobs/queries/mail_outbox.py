"""E-mails that were or will be sent, and addresses that are not written to for a while."""

from datetime import timedelta
from uuid import UUID

from app.kernel.database import ReadConn, Tx
from app.kernel.ids import UserId

# Two workers must not both take the last slot of an hour. The key of a recipient is taken before that of a sender by
# everybody, so no two wait for each other.
LOCK_MAIL = """
SELECT pg_advisory_xact_lock($1::bigint)
"""


async def lock_mail(tx: Tx, key: int) -> None:
    """Waits until no other transaction holds `key`, a number of 64 bits; held until the end of this one."""
    await tx.execute(LOCK_MAIL, key)


# The clock of the moment, not that of the transaction, which may have waited for the lock.
RESERVE_MAIL = """
WITH clock AS (SELECT clock_timestamp() AS moment),
own AS (
    SELECT m.send_at FROM jobs.mail_sends AS m, clock
    WHERE m.job_id = $1 AND m.send_at > clock.moment - interval '10 minutes'
),
free AS (
    SELECT GREATEST(
        clock.moment,
        (SELECT m.send_at + $7::interval FROM jobs.mail_sends AS m
         WHERE m.recipient_hash = $2 AND m.purpose = $3 AND m.job_id <> $1
         ORDER BY m.send_at DESC OFFSET $5 - 1 LIMIT 1),
        (SELECT m.send_at + $7::interval FROM jobs.mail_sends AS m
         WHERE m.sender_id = $4 AND m.job_id <> $1
         ORDER BY m.send_at DESC OFFSET $6 - 1 LIMIT 1)
    ) AS send_at
    FROM clock
),
slot AS (
    SELECT COALESCE((SELECT own.send_at FROM own), free.send_at) AS send_at FROM free
),
kept AS (
    INSERT INTO jobs.mail_sends (job_id, recipient_hash, purpose, sender_id, send_at)
    SELECT $1, $2, $3, $4::uuid, slot.send_at FROM slot, clock WHERE slot.send_at <= clock.moment + $8::interval
    ON CONFLICT (job_id) DO UPDATE
       SET recipient_hash = excluded.recipient_hash, purpose = excluded.purpose, sender_id = excluded.sender_id,
           send_at = excluded.send_at
    RETURNING job_id
)
SELECT extract(epoch FROM slot.send_at - clock.moment)::float8 AS seconds, EXISTS (SELECT FROM kept) AS is_kept
FROM slot, clock
"""


async def reserve_mail(
    tx: Tx,
    job_id: UUID,
    *,
    recipient_hash: bytes,
    purpose: str,
    sender_id: UserId | None,
    per_recipient: int,
    per_sender: int,
    window: timedelta,
    horizon: timedelta,
) -> float | None:
    """The seconds until the job's message may be sent, 0 or less for at once; None if that is after `horizon`.

    The moment is chosen so that no `window` holds more than the limits, and is kept for this job for ten minutes: a
    message that is tried again soon is not counted twice.
    """
    row = await tx.fetchrow(
        RESERVE_MAIL, job_id, recipient_hash, purpose, sender_id, per_recipient, per_sender, window, horizon
    )
    if row is None:
        raise LookupError("a reservation answers with one row")
    seconds: float = row["seconds"]
    return seconds if row["is_kept"] else None


DELETE_OLD_MAIL_SENDS = """
DELETE FROM jobs.mail_sends WHERE job_id IN (
    SELECT m.job_id FROM jobs.mail_sends AS m WHERE m.send_at < now() - interval '1 day' ORDER BY m.send_at LIMIT $1
)
"""


async def delete_old_mail_sends(tx: Tx, limit: int) -> int:
    """Deletes up to `limit` entries that no limit counts any more; answers how many."""
    return int((await tx.execute(DELETE_OLD_MAIL_SENDS, limit)).removeprefix("DELETE "))


GET_SUPPRESSION = """
SELECT s.reason FROM jobs.email_suppressions AS s
WHERE s.address_hash = $1 AND s.created_at > now() - make_interval(days => $2)
"""


async def get_suppression(conn: ReadConn, address_hash: bytes, days: int) -> str | None:
    """Why the address is not written to, or None. An entry counts for so many days."""
    reason: str | None = await conn.fetchval(GET_SUPPRESSION, address_hash, days)
    return reason


INSERT_SUPPRESSION = """
INSERT INTO jobs.email_suppressions (address_hash, reason, created_at) VALUES ($1, $2, now())
ON CONFLICT (address_hash) DO UPDATE SET reason = excluded.reason, created_at = excluded.created_at
"""


async def insert_suppression(tx: Tx, address_hash: bytes, reason: str) -> None:
    await tx.execute(INSERT_SUPPRESSION, address_hash, reason)


DELETE_SUPPRESSION = """
DELETE FROM jobs.email_suppressions WHERE address_hash = $1
"""


async def delete_suppression(tx: Tx, address_hash: bytes) -> bool:
    """Whether there was one."""
    return await tx.execute(DELETE_SUPPRESSION, address_hash) == "DELETE 1"


DELETE_OLD_SUPPRESSIONS = """
DELETE FROM jobs.email_suppressions WHERE created_at <= now() - make_interval(days => $1)
"""


async def delete_old_suppressions(tx: Tx, days: int) -> int:
    """Deletes entries that do not count any more; answers how many."""
    return int((await tx.execute(DELETE_OLD_SUPPRESSIONS, days)).removeprefix("DELETE "))
