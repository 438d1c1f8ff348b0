"""Tickets that were used."""

from datetime import datetime
from uuid import UUID

from app.kernel.database import Tx

# Each use also forgets some that have expired, so that there are never more than those of some minutes.
SPEND_TICKET = """
WITH expired AS (
    SELECT t.id FROM jobs.spent_tickets AS t WHERE t.expires_at < now() LIMIT 100 FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM jobs.spent_tickets AS t USING expired AS e WHERE t.id = e.id
)
INSERT INTO jobs.spent_tickets (id, expires_at) VALUES ($1, $2) ON CONFLICT DO NOTHING
RETURNING id
"""


async def spend_ticket(tx: Tx, ticket_id: UUID, expires_at: datetime) -> bool:
    """Whether it had not been spent; `expires_at` is from when on nothing has to know of it."""
    return await tx.fetchval(SPEND_TICKET, ticket_id, expires_at) is not None
