"""The jobs that delete the data of closed accounts, asked for until the data are gone."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

from app.identity.queries.accounts import list_overdue_purges
from app.identity.service.emails import KIND_PURGE
from app.kernel.clock import Clock
from app.kernel.database import Database, retries_conflicts
from app.kernel.ids import UserId
from app.kernel.observability.telemetry import get_logger
from app.kernel.queue import NewJob, Queue

_logger = get_logger(__name__)
_MAX_ATTEMPTS = 20
_PAGE = 500
# By then the job of the deletion itself has begun, or waits where all jobs wait.
_LATE = timedelta(hours=1)


def new_purge(queue: Queue, user_id: UserId, run_at: datetime | None = None) -> NewJob:
    """The job for an account. While one of it is unfinished, it is that one."""
    return queue.new_job(
        KIND_PURGE,
        {"user_id": str(user_id)},
        user_id=None,
        run_at=run_at,
        unique_key=str(user_id),
        max_attempts=_MAX_ATTEMPTS,
    )


async def renew_purges(db: Database, queue: Queue, clock: Clock) -> int:
    """Asks once more for each purge that is late and has no unfinished job; the answer is for how many.

    A purge that has failed for good, as where the store of files was away for days, would leave the data for ever.
    """
    renewed = 0
    before = clock.now() - _LATE
    after: tuple[datetime, UUID] | None = None
    while True:
        async with db.read("identity.overdue_purges") as conn:
            page = await list_overdue_purges(conn, before, after, _PAGE)
        renewed += await _enqueue(db, queue, [UserId(user_id) for _, user_id in page])
        if len(page) < _PAGE:
            break
        after = page[-1]
    if renewed:
        _logger.warning("identity.purges_renewed", count=renewed)
    return renewed


@retries_conflicts
async def _enqueue(db: Database, queue: Queue, users: Sequence[UserId]) -> int:
    """How many of these accounts had no unfinished purge. A job finds out by itself that there is nothing to do."""
    if not users:
        return 0
    async with db.statement("identity.renew_purges") as tx:
        done = await queue.enqueue_rows(tx, [new_purge(queue, user_id) for user_id in users])
    return sum(enqueued.created for enqueued in done)
