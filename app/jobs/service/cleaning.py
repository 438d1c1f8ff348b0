"""What is over its time goes: files, finished jobs, and files that belong to nothing."""

from datetime import UTC, datetime, timedelta

from app.jobs.queries import cleaning as queries
from app.jobs.queries.webhook_deliveries import delete_old_messages
from app.jobs.service.storage import ArtifactStore
from app.kernel.clock import Clock
from app.kernel.database import Database, in_batches, retries_conflicts
from app.kernel.ids import UserId
from app.kernel.observability.telemetry import get_logger

_logger = get_logger(__name__)

_BATCH = 500
# An upload may take as long as its job; what is younger may still be published.
_ORPHAN_AGE = timedelta(hours=24)


async def expire_artifacts(db: Database, store: ArtifactStore) -> int:
    """Deletes files whose time is over; answers how many. A crash in between repeats the last batch.

    One that cannot be deleted is passed over, and looked at again the next time.

    Raises:
        StoreUnavailable
    """
    total = 0
    last = (datetime(1970, 1, 1, tzinfo=UTC), "")
    while True:
        async with db.read("jobs.expired_artifacts") as conn:
            expired = await queries.list_expired_artifacts(conn, last, _BATCH)
        if not expired:
            return total
        last = expired[-1]
        gone = await store.delete([key for _, key in expired])
        async with db.statement("jobs.expire_artifacts") as tx:
            await queries.mark_artifacts_deleted(tx, gone)
        total += len(gone)


@retries_conflicts
async def expire_surplus(db: Database, max_bytes: int) -> int:
    """Ends the time of files beyond what is kept of one user, the oldest first; answers of how many.

    A job that copies all data of its user may be started again as soon as it has ended, and each copy is kept for days.
    """
    async with db.read("jobs.users_over_file_limit") as conn:
        users = await queries.list_users_over_file_limit(conn, max_bytes)
    total = 0
    for user_id in users:
        async with db.statement("jobs.expire_surplus") as tx:
            total += len(await queries.expire_surplus(tx, user_id, max_bytes))
    return total


async def make_room(db: Database, store: ArtifactStore, user_id: UserId, max_bytes: int) -> None:
    """Deletes a user's files beyond `max_bytes`, the oldest first, before another one is written: many may be made
    between two cleanings.

    Raises:
        StoreUnavailable
    """
    async with db.statement("jobs.make_room") as tx:
        surplus = await queries.expire_surplus(tx, user_id, max_bytes)
    if surplus:
        gone = await store.delete(surplus)
        async with db.statement("jobs.expire_artifacts") as tx:
            await queries.mark_artifacts_deleted(tx, gone)


async def prune_jobs(db: Database, retention_days: int) -> int:
    """Deletes jobs that ended long ago and have no file left; answers how many."""
    return await in_batches(db, "jobs.prune", lambda tx, limit: queries.delete_old_jobs(tx, retention_days, limit))


async def prune_attempts(db: Database, clock: Clock, retention_days: int) -> int:
    """Deletes failed runs of long ago of jobs that are still there, as one that was replayed again and again."""
    now = clock.now()
    return await in_batches(
        db,
        "jobs.prune_attempts",
        lambda tx, limit: queries.delete_old_attempts(tx, retention_days, now, limit),
    )


async def prune_messages(db: Database, retention_days: int) -> int:
    """Deletes webhook messages with their deliveries after their time; answers how many messages."""
    return await in_batches(db, "jobs.prune_messages", lambda tx, limit: delete_old_messages(tx, retention_days, limit))


async def delete_orphans(db: Database, store: ArtifactStore, clock: Clock) -> int:
    """Deletes files that no job has published, as a crash leaves them; answers how many. Raises StoreUnavailable."""
    before = clock.now() - _ORPHAN_AGE
    total = await store.delete_unfinished(before)
    async for keys in store.list_before(before):
        async with db.read("jobs.orphans") as conn:
            published = set(await queries.list_published_keys(conn, keys))
        orphans = [key for key in keys if key not in published]
        total += len(await store.delete(orphans))
    if total:
        _logger.info("jobs.orphans_deleted", count=total)
    return total
