"""Which worker processes there are: each reports itself from time to time, and says when it ends."""

from contextlib import suppress

from app.jobs.queries import workers as queries
from app.jobs.records.administration import WorkerStatus
from app.kernel.database import Database
from app.kernel.errors import Unavailable
from app.kernel.queue.slots import Runner


async def report_worker(db: Database, runner: Runner, worker_id: str, version: str) -> None:
    """Reports this process once."""
    async with db.statement("jobs.report_worker") as tx:
        await queries.report_worker(tx, worker_id, version, sorted(runner.queues), runner.slots, len(runner.tasks))


async def report_worker_end(db: Database, worker_id: str) -> None:
    """Takes this process off the list; one that cannot say so is found by its last report."""
    with suppress(Unavailable):
        async with db.statement("jobs.report_worker_end") as tx:
            await queries.delete_worker(tx, worker_id)


async def list_workers(db: Database) -> list[WorkerStatus]:
    """The workers that have reported themselves within a day, by id."""
    async with db.read("jobs.workers") as conn:
        return await queries.list_workers(conn)
