"""E-mails that were handed over, and addresses that are not written to for a while."""

from datetime import timedelta
from uuid import UUID

from app.kernel.database import ReadConn, Tx
from app.kernel.ids import UserId

# Two workers must not both send the last message of an hour. The key of a recipient is taken before that of a sender by
# everybody, so no two wait for each other.
LOCK_MAIL = """
SELECT pg_advisory_xact_lock($1::bigint)
"""


async def lock_mail(tx: Tx, key: int) -> None:
    """Waits until no other transaction holds `key`, a number of 64 bits; held until the end of this one."""
    await tx.execute(LOCK_MAIL, key)


# The clock of the moment, not that of the transaction, which may have waited for the lock. A sender may hold fewer than
# are free of what may be sent to a recipient, so that others always find some.
RESERVE_MAIL = """
WITH clock AS (SELECT clock_timestamp() AS moment),
given_back AS (
    DELETE FROM jobs.mail_sends AS m WHERE $8::boolean AND m.job_id = $1 AND m.is_open
),
counted AS (
    SELECT m.recipient_hash = $2 AND m.purpose = $3 AS is_to_recipient,
           COALESCE(m.sender_id = $4::uuid, false) AS is_own, m.send_at
    FROM jobs.mail_sends AS m, clock
    WHERE (m.recipient_hash = $2 AND m.purpose = $3 OR m.sender_id = $4::uuid)
      AND m.send_at > clock.moment - $7::interval AND NOT ($8::boolean AND m.job_id = $1 AND m.is_open)
),
sums AS (
    SELECT count(*) FILTER (WHERE c.is_to_recipient) AS to_recipient,
           count(*) FILTER (WHERE c.is_to_recipient AND c.is_own) AS own_to_recipient,
           count(*) FILTER (WHERE c.is_own) AS of_sender,
           min(c.send_at) FILTER (WHERE c.is_to_recipient) AS first_to_recipient,
           min(c.send_at) FILTER (WHERE c.is_own) AS first_of_sender
    FROM counted AS c
),
judged AS (
    SELECT GREATEST(
        CASE WHEN s.to_recipient + s.own_to_recipient >= $5 THEN s.first_to_recipient END,
        CASE WHEN s.of_sender >= $6 THEN s.first_of_sender END
    ) + $7::interval - clock.moment AS wait
    FROM sums AS s, clock
),
kept AS (
    INSERT INTO jobs.mail_sends (job_id, recipient_hash, purpose, sender_id, send_at)
    SELECT $1, $2, $3, $4, clock.moment FROM judged, clock WHERE judged.wait IS NULL
)
SELECT extract(epoch FROM judged.wait)::float8 FROM judged
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
    is_continued: bool,
) -> float | None:
    """Counts one message that is about to be handed over. None, or in how many seconds the limits may allow it.

    No `window` holds more than the limits, and no sender more than half of what the others leave of a recipient's.
    `is_continued`: a message of the job that the server has not taken before is not counted any more.
    """
    row = (job_id, recipient_hash, purpose, sender_id, per_recipient, per_sender, window, is_continued)
    seconds: float | None = await tx.fetchval(RESERVE_MAIL, *row)
    return seconds


REOPEN_MAIL = """
UPDATE jobs.mail_sends SET is_open = true
WHERE job_id = $1 AND send_at = (SELECT max(m.send_at) FROM jobs.mail_sends AS m WHERE m.job_id = $1)
"""


async def reopen_mail(tx: Tx, job_id: UUID) -> None:
    """Notes that the server has not taken the last message of the job, whose next run is to count it again."""
    await tx.execute(REOPEN_MAIL, job_id)


DELETE_OLD_MAIL_SENDS = """
DELETE FROM jobs.mail_sends WHERE (job_id, send_at) IN (
    SELECT m.job_id, m.send_at FROM jobs.mail_sends AS m
    WHERE m.send_at < now() - interval '1 day' ORDER BY m.send_at LIMIT $1
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
