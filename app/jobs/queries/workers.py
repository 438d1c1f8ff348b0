"""Worker processes as they report themselves."""

from collections.abc import Sequence

from app.jobs.records.administration import WorkerStatus
from app.kernel.database import ReadConn, Tx

REPORT_WORKER = """
WITH gone AS (
    DELETE FROM jobs.workers WHERE heartbeat_at < now() - interval '1 day' AND worker_id <> $1
)
INSERT INTO jobs.workers (worker_id, version, queues, slots, running) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (worker_id) DO UPDATE
SET version = excluded.version, queues = excluded.queues, slots = excluded.slots, running = excluded.running,
    heartbeat_at = now()
"""


async def report_worker(tx: Tx, worker_id: str, version: str, queues: Sequence[str], slots: int, running: int) -> None:
    """Says that a worker is there, and forgets those that have not for a day."""
    await tx.execute(REPORT_WORKER, worker_id, version, queues, slots, running)


DELETE_WORKER = """
DELETE FROM jobs.workers WHERE worker_id = $1
"""


async def delete_worker(tx: Tx, worker_id: str) -> None:
    await tx.execute(DELETE_WORKER, worker_id)


LIST_WORKERS = """
SELECT w.worker_id, w.version, w.queues, w.slots, w.running, w.started_at, w.heartbeat_at FROM jobs.workers AS w
WHERE w.heartbeat_at >= now() - interval '1 day'
ORDER BY w.worker_id
"""


async def list_workers(conn: ReadConn) -> list[WorkerStatus]:
    """The workers that have reported themselves within a day, by id."""
    return [WorkerStatus(**row) for row in await conn.fetch(LIST_WORKERS)]
