"""Addresses that are not written to any more."""

from datetime import datetime

from app.kernel.database import ReadConn, Tx

GET_SUPPRESSION = """
SELECT s.reason FROM jobs.email_suppressions AS s WHERE s.address_hash = $1
"""


async def get_suppression(conn: ReadConn, address_hash: bytes) -> str | None:
    """Why the address is not written to, or None."""
    reason: str | None = await conn.fetchval(GET_SUPPRESSION, address_hash)
    return reason


INSERT_SUPPRESSION = """
INSERT INTO jobs.email_suppressions (address_hash, reason, created_at) VALUES ($1, $2, $3)
ON CONFLICT (address_hash) DO NOTHING
"""


async def insert_suppression(tx: Tx, address_hash: bytes, reason: str, now: datetime) -> None:
    await tx.execute(INSERT_SUPPRESSION, address_hash, reason, now)
