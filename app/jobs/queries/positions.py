"""How far jobs have come that work through many rows, so that they go on there after their worker was killed."""

from uuid import UUID

from app.jobs.records.administration import Position
from app.kernel.database import ReadConn, Tx

GET_POSITION = """
SELECT p.last_id, p.done, p.skipped, p.total FROM jobs.positions AS p WHERE p.job_id = $1
"""


async def get_position(conn: ReadConn, job_id: UUID) -> Position | None:
    """How far a job has come; None: it has not begun."""
    row = await conn.fetchrow(GET_POSITION, job_id)
    return None if row is None else Position(**row)


SET_POSITION = """
INSERT INTO jobs.positions (job_id, last_id, done, skipped, total) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (job_id) DO UPDATE
SET last_id = excluded.last_id, done = excluded.done, skipped = excluded.skipped, total = excluded.total
"""


async def set_position(tx: Tx, job_id: UUID, position: Position) -> None:
    await tx.execute(SET_POSITION, job_id, position.last_id, position.done, position.skipped, position.total)
